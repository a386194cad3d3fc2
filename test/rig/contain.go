package rig

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideName is the argv[0] by which a program knows that it is inside.
const insideName = "contained"

// privateDirs are given to the program inside empty: where the commands under
// test put their sockets, and where sshd wants a directory.
var privateDirs = []string{"/run/spfs", "/run/sshd"}

// settle is how long processes may take to end by themselves once the
// program is over.
const settle = 5 * time.Second

// Contain calls run in a second process of this program, which has a mount
// namespace of its own, an empty temporary directory and an empty /run/spfs.
// The first process stays outside, adopts every orphan, and when the second
// has ended looks for what is left and ends it. Contain returns the exit
// status for main: that of run, or 1 if anything was left. It needs root.
func Contain(run func() int) int {
	if os.Args[0] == insideName {
		return inside(run)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests mount file systems and trace processes: run them as root")
		return 1
	}
	status, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

func inside(run func() int) int {
	for _, dir := range privateDirs {
		if err := unix.Mount("spfs-test", dir, "tmpfs", 0, "mode=0755"); err != nil {
			fmt.Fprintf(os.Stderr, "mount a tmpfs on %s: %v\n", dir, err)
			return 1
		}
	}
	before := fuseMounts()
	status := run()
	left := append(difference(fuseMounts(), before), dirEntries("/run/spfs")...)
	return report(status, left)
}

func outside() (status int, err error) {
	// The child's death signal comes when the *thread* that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	for _, dir := range privateDirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
	}
	// A short name: the paths of sockets have 107 bytes. For everyone, as any
	// temporary directory: some tests change their user.
	tmp, err := os.MkdirTemp("", "t")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o1777); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	mounts, cgroups := fuseMounts(), cgroupDirs()

	p, err := os.StartProcess("/proc/self/exe", append([]string{insideName}, os.Args[1:]...), &os.ProcAttr{
		Env:   append(withoutTMPDIR(os.Environ()), "TMPDIR="+tmp),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, fmt.Errorf("run in a new mount namespace: %w", err)
	}
	stop := forwardSignals(p.Pid)
	defer stop()
	status = reap(p.Pid)

	left := endDescendants()
	left = append(left, difference(fuseMounts(), mounts)...)
	left = append(left, difference(cgroupDirs(), cgroups)...)
	left = append(left, dirEntries(tmp)...)
	return report(status, left), nil
}

func withoutTMPDIR(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "TMPDIR=") })
}

func report(status int, left []string) int {
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind:", l)
	}
	if status == 0 && len(left) > 0 {
		return 1
	}
	return status
}

func forwardSignals(pid int) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGINT, unix.SIGTERM)
	go func() {
		for s := range c {
			unix.Kill(pid, s.(syscall.Signal))
		}
	}()
	return func() { signal.Stop(c); close(c) }
}

// reap waits for every child that ends until pid is among them, and returns
// its exit status as a shell has it.
func reap(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case got == pid && ws.Exited():
			return ws.ExitStatus()
		}
	}
}

// endDescendants waits a little for all processes below this one to end, kills
// those that don't, and describes them.
func endDescendants() (left []string) {
	for end := time.Now().Add(settle); ; time.Sleep(5 * time.Millisecond) {
		for { // what has ended
			if got, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); got <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		pids := children(os.Getpid())
		if len(pids) == 0 {
			return left
		}
		if time.Now().Before(end) {
			continue
		}
		for _, pid := range pids { // their children become ours
			d := describe(pid)
			if !slices.Contains(left, d) {
				left = append(left, d)
			}
			unix.Kill(pid, unix.SIGKILL)
		}
		if len(left) > 1000 || time.Now().After(end.Add(4*settle)) {
			return append(left, "… and they can't be killed")
		}
	}
}

// children lists the pids whose parent is pid.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, w := range strings.Fields(string(b)) {
			var child int
			if _, err := fmt.Sscan(w, &child); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// describe names a process and its state: T or t is stopped.
func describe(pid int) string {
	cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	words := strings.ReplaceAll(strings.TrimRight(string(cmd), "\x00"), "\x00", " ")
	return fmt.Sprintf("process %d (state %s): %s", pid, State(pid), words)
}
