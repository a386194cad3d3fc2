package ptrace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fixture is a running program of testdata, that checks itself.
type fixture struct {
	tb  testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	pid int

	said string // the line "ready"
}

var built = struct {
	sync.Mutex
	dir string
	bin map[string]string
}{bin: map[string]string{}}

func TestMain(m *testing.M) {
	if role := os.Getenv(tracerRole); role != "" {
		var pid int
		var how string
		fmt.Sscanf(role, "%d %s", &pid, &how)
		if how == "main" {
			mainThreadTracer(pid)
		} else {
			dyingTracer(pid, how)
		}
		os.Exit(0)
	}
	status := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(status)
}

// build compiles testdata/name.c once.
func build(tb testing.TB, name string) string {
	tb.Helper()
	built.Lock()
	defer built.Unlock()
	if bin := built.bin[name]; bin != "" {
		return bin
	}
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "ptrace-test-")
		if err != nil {
			tb.Fatal(err)
		}
		built.dir = dir
	}
	bin := filepath.Join(built.dir, name)
	out, err := exec.Command("cc", "-O2", "-Wall", "-Werror", "-pthread", "-o", bin, filepath.Join("testdata", name+".c")).CombinedOutput()
	if err != nil {
		tb.Fatalf("cc %s.c: %v\n%s", name, err, out)
	}
	built.bin[name] = bin
	return bin
}

// start runs a fixture up to its line "ready".
func start(tb testing.TB, name string, args ...string) *fixture {
	tb.Helper()
	return run(tb, exec.Command(build(tb, name), args...))
}

// run is start for a program that is built.
func run(tb testing.TB, cmd *exec.Cmd) *fixture {
	tb.Helper()
	f := &fixture{tb: tb, cmd: cmd}
	var err error
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	f.cmd.Stderr = os.Stderr
	// A process group of its own, with a parent outside of it: in one that is
	// orphaned, as a test's in the background may be, SIGTSTP stops nobody
	// (kernel/signal.c get_signal, is_current_pgrp_orphaned).
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	f.out = bufio.NewReader(out)
	// The fixture asks for a signal when its parent thread ends.
	runtime.LockOSThread()
	if err := f.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	f.pid = f.cmd.Process.Pid
	tb.Cleanup(func() {
		f.cmd.Process.Kill()
		f.cmd.Wait()
		runtime.UnlockOSThread()
	})
	f.said = f.expect("ready")
	return f
}

// expect reads a line that must start with prefix.
func (f *fixture) expect(prefix string) string {
	f.tb.Helper()
	type read struct {
		line string
		err  error
	}
	c := make(chan read, 1)
	go func() {
		line, err := f.out.ReadString('\n')
		c <- read{line, err}
	}()
	select {
	case r := <-c:
		if r.err != nil || !strings.HasPrefix(r.line, prefix) {
			f.tb.Fatalf("%s: said %q (%v), want %q", f.cmd.Path, r.line, r.err, prefix)
		}
		return strings.TrimSpace(r.line)
	case <-time.After(20 * time.Second):
		f.tb.Fatalf("%s: silent, want %q\n%s", f.cmd.Path, prefix, f.state())
	}
	panic("unreachable")
}

func (f *fixture) state() string {
	var s strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", f.pid))
	for _, t := range tasks {
		stat, _ := os.ReadFile(t + "/stat")
		call, _ := os.ReadFile(t + "/syscall")
		fmt.Fprintf(&s, "%s%s", stat, call)
	}
	return s.String()
}

func (f *fixture) signal(sig unix.Signal) {
	f.tb.Helper()
	if err := unix.Kill(f.pid, sig); err != nil {
		f.tb.Fatalf("kill %d: %v", f.pid, err)
	}
}

// ends waits for the fixture's exit with status 0.
func (f *fixture) ends() {
	f.tb.Helper()
	// A tracer is a thread of its parent here, and may have been the first to wait
	// for a leader that left before the others (kernel/exit.c wait_task_zombie).
	if err := f.cmd.Wait(); err != nil && !errors.Is(err, unix.ECHILD) {
		f.tb.Fatalf("%s: %v", f.cmd.Path, err)
	}
}

// killedBy waits for the fixture's end by a signal.
func (f *fixture) killedBy(sig unix.Signal) {
	f.tb.Helper()
	f.cmd.Wait()
	if ws, ok := f.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != sig {
		f.tb.Errorf("%s: %v, want %v", f.cmd.Path, f.cmd.ProcessState, sig)
	}
}

func withTime(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

func contextWith(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func newTracer(tb testing.TB) *Tracer {
	t := New()
	tb.Cleanup(t.Close)
	return t
}

// must returns v, and fails the test if err is not nil.
func must[T any](v T, err error) func(tb testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
