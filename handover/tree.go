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

// zombie says whether a process has ended and nobody has waited for it.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // waited for
	}
	// The name, in parentheses, may hold anything.
	rest := b[strings.LastIndexByte(string(b), ')')+1:]
	fields := strings.Fields(string(rest))
	return len(fields) > 0 && (fields[0] == "Z" || fields[0] == "X")
}
