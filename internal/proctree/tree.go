package proctree

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Of lists the processes of a tree by their pids, the root first.
func Of(root int) ([]int, error) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", root)); err != nil {
		return nil, fmt.Errorf("there is no process %d", root)
	}
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		children, err := Children(pids[i])
		if err != nil {
			return nil, err
		}
		pids = append(pids, children...)
	}
	return pids, nil
}

// Children lists the children of a process, none if it is gone.
func Children(pid int) (pids []int, err error) {
	// A child is listed under the thread that made it.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil && len(lists) == 0 {
		return nil, fmt.Errorf("/proc/%d tells no children: the kernel has no CONFIG_PROC_CHILDREN", pid)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended since
		}
		for _, word := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// Name is what a message calls a process: "1234 (sshfs)", or the number alone
// if it is gone.
func Name(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return strconv.Itoa(pid)
	}
	return fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(comm)))
}

// Stat returns the fields of /proc/PID/stat, as proc_pid_stat(5) lists them,
// from the 3rd on, at least 20: the 2nd is in parentheses and may hold
// anything.
func Stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	return fields, nil
}

// Descends says whether a thread belongs to a process or to one of its
// descendants. One that is gone does not.
func Descends(tid, root int) bool {
	for tid > 1 {
		group, parent, err := family(tid)
		if err != nil {
			return false
		}
		if group == root {
			return true
		}
		tid = parent
	}
	return tid == root
}

// family tells a thread's process and that one's parent.
func family(tid int) (group, parent int, err error) {
	numbers, err := status(tid, "Tgid", "PPid")
	if err != nil {
		return 0, 0, err
	}
	return numbers[0][0], numbers[1][0], nil
}

// Numbers are those that a thread has in each pid namespace: first in that of
// /proc, which has to be this process's, last in its own.
func Numbers(tid int) ([]int, error) {
	numbers, err := status(tid, "NSpid")
	if err != nil {
		return nil, err
	}
	return numbers[0], nil
}

// Tracer is the thread that traces one, or 0.
func Tracer(tid int) (int, error) {
	numbers, err := status(tid, "TracerPid")
	if err != nil {
		return 0, err
	}
	return numbers[0][0], nil
}

// status reads fields of /proc/TID/status that are numbers, at least one each.
func status(tid int, names ...string) ([][]int, error) {
	path := fmt.Sprintf("/proc/%d/status", tid)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := make([][]int, len(names))
	for line := range strings.Lines(string(b)) {
		name, values, _ := strings.Cut(line, ":")
		i := slices.Index(names, name)
		if i < 0 {
			continue
		}
		for _, value := range strings.Fields(values) {
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, name, err)
			}
			found[i] = append(found[i], n)
		}
	}
	for i, name := range names {
		if len(found[i]) == 0 {
			return nil, fmt.Errorf("%s has no %s", path, name)
		}
	}
	return found, nil
}

// Kernel says whether a thread is one of the kernel's own.
func Kernel(tid int) bool {
	const kthread = 0x00200000 // PF_KTHREAD: include/linux/sched.h
	return flags(tid)&kthread != 0
}

// Ending says whether a thread runs no program any more, but is not over.
func Ending(tid int) bool {
	const exiting = 0x00000004 // PF_EXITING
	return flags(tid)&exiting != 0
}

func flags(tid int) uint64 {
	fields, err := Stat(tid)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
