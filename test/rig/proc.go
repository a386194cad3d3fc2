package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func pidDir(pid int) string {
	if pid == 0 {
		return "self"
	}
	return fmt.Sprint(pid)
}

// State is the state letter of a process: R, S, D, T (stopped), t (traced), Z;
// or "-" if there is no such process.
func State(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "-"
	}
	// The name in parentheses may hold anything; the state follows the last one.
	_, rest, _ := cutLast(string(b), ") ")
	return rest[:1]
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Alive tells whether pid is a process that has not ended.
func Alive(pid int) bool {
	s := State(pid)
	return s != "-" && s != "Z" && s != "X"
}

// KernelStack is where each thread of a process waits in the kernel.
func KernelStack(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		stack, _ := os.ReadFile(task + "/stack")
		call, _ := os.ReadFile(task + "/syscall")
		fmt.Fprintf(&b, "\n thread %s, system call %s%s", filepath.Base(task), call, stack)
	}
	return b.String()
}

// Kill sends SIGKILL to processes that rig started, or that descend from one,
// and waits until they have ended.
func Kill(t T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Errorf("kill %d: %v", pid, err)
		}
	}
	for _, pid := range pids {
		Await(t, patience, func() bool { return !Alive(pid) }, "the end of %s%s", describe(pid), KernelStack(pid))
	}
}

// Tree lists pid and all its descendants.
func Tree(pid int) []int {
	pids := []int{pid}
	for _, c := range children(pid) {
		pids = append(pids, Tree(c)...)
	}
	return pids
}

// CountFDs returns how many descriptors a process has.
func CountFDs(t T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return len(entries)
}

// CountMappings returns how many lines a process's maps have.
func CountMappings(t T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return strings.Count(string(b), "\n")
}
