package proctree

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Of lists the processes of a tree by their pids, the root first.
func Of(root int) ([]int, error) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		// A child is listed under the thread that made it.
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			return nil, err
		}
		if i == 0 && len(lists) == 0 {
			return nil, fmt.Errorf("there is no process %d", root)
		}
		for _, l := range lists {
			b, err := os.ReadFile(l)
			if err != nil {
				continue // the thread ended since
			}
			for _, s := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(s)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", l, err)
				}
				pids = append(pids, pid)
			}
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
