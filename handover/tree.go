package handover

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// treeOf lists the processes of a tree, the root first.
func treeOf(root int) ([]int, error) {
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

// describe names a process in a message.
func describe(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
}

// zombie says whether a process has ended, waited for or not.
func zombie(pid int) bool {
	fields, err := statOf(pid)
	return err != nil || fields[0] == "Z" || fields[0] == "X"
}

// startOf tells a process from others that have its pid, at other times.
func startOf(pid int) (string, error) {
	fields, err := statOf(pid)
	if err != nil {
		return "", err
	}
	return fields[19], nil // the 22nd of proc_pid_stat(5)
}

// statOf returns the fields of /proc/PID/stat from the third on: the second, in
// parentheses, may hold anything.
func statOf(pid int) ([]string, error) {
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
