package stubfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
	"spfs/proxyfs"
)

// limit is how long anything may take that does not hang.
const limit = 60 * time.Second

// mounted is a real mount, served by the test's process, which therefore never
// uses it itself: a file of it that is open here would be closed, and waited
// for, by each child between fork and exec, and by the end of the test.
type mounted struct {
	*FS
	t     *testing.T
	conn  *fusedev.Conn
	point string
	dir   *os.File // what it is a proxy of, once open
}

// mountStub mounts a shut gate in front of a new directory.
func mountStub(t *testing.T) *mounted {
	t.Helper()
	base := t.TempDir()
	m := &mounted{t: t, point: filepath.Join(base, "mount"), dir: makeDir(t, filepath.Join(base, "dir"))}
	at := makeDir(t, m.point)

	conn, detached, err := fusedev.Mount("spfs-test")
	if err != nil {
		t.Fatal(err)
	}
	m.conn = conn
	m.FS = New(conn, Kind{
		New:       func(dir *os.File) (Target, error) { return proxyfs.New(dir, proxyfs.Options{}) },
		Configure: proxyfs.Configure,
	})
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	t.Cleanup(func() {
		// In use or not; opened, so that nobody is left waiting.
		unix.Unmount(m.point, unix.MNT_DETACH)
		m.Open(context.Background(), m.dir)
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
			conn.Close()
		case <-time.After(limit):
			t.Error("the connection did not end")
		}
	})
	if err := detached.Attach(at); err != nil {
		t.Fatal(err)
	}
	detached.Close()
	at.Close()
	return m
}

// mountProxy mounts an open gate.
func mountProxy(t *testing.T) *mounted {
	t.Helper()
	m := mountStub(t)
	m.open()
	return m
}

func makeDir(t *testing.T, path string) *os.File {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// write puts a file into the directory, behind the mount.
func (m *mounted) write(name, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir.Name(), name), []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) path(name string) string { return filepath.Join(m.point, name) }

func (m *mounted) open() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := m.Open(ctx, m.dir); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) shutGate() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := m.Shut(ctx); err != nil {
		m.t.Fatal(err)
	}
}

// waitHeld waits until the held requests are as wanted.
func (m *mounted) waitHeld(what string, wanted func([]Held) bool) []Held {
	m.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		h := m.Held()
		if wanted(h) {
			return h
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("waiting for %s: held are %d: %.2000v", what, len(h), h)
		}
		time.Sleep(5 * time.Millisecond) // the gate tells nobody of an arrival
	}
}

// of says that a process waits, in an operation if one is given.
func of(pid int, op string) func([]Held) bool {
	return func(all []Held) bool {
		for _, h := range all {
			if h.PID == pid && (op == "" || h.Op == op) {
				return true
			}
		}
		return false
	}
}

// program is a running testdata/client.c.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	done chan struct{} // closed when it has ended, with err set
	err  error
}

func (m *mounted) start(args ...string) *program {
	m.t.Helper()
	return m.startProgram(client, args...)
}

func (m *mounted) startProgram(name string, args ...string) *program {
	m.t.Helper()
	p := &program{t: m.t, cmd: exec.Command(name, args...), done: make(chan struct{})}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, os.Stderr
	p.in, p.out = in, bufio.NewReader(r)
	if err := p.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	w.Close()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	m.t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.wait()
		in.Close()
		r.Close()
	})
	return p
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// line reads what the program says next.
func (p *program) line() string {
	p.t.Helper()
	type answer struct {
		s   string
		err error
	}
	c := make(chan answer, 1)
	go func() {
		s, err := p.out.ReadString('\n')
		c <- answer{strings.TrimSpace(s), err}
	}()
	select {
	case a := <-c:
		if a.err != nil {
			p.t.Fatalf("program %v says nothing more: %v", p.cmd.Args[1:], a.err)
		}
		return a.s
	case <-time.After(limit):
		p.t.Fatalf("program %v says nothing", p.cmd.Args[1:])
		return ""
	}
}

func (p *program) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("program %v says %q, want %q", p.cmd.Args[1:], got, want)
	}
}

// wait waits for the program's end, and returns its error.
func (p *program) wait() error {
	p.t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.t.Errorf("program %v (%d) does not end", p.cmd.Args[1:], p.pid())
		return fmt.Errorf("still running")
	}
}

func (p *program) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// waitPending waits until a signal that was sent to the program is pending:
// it waits in the kernel, and the signal has not made it return.
func (p *program) waitPending(sig syscall.Signal) {
	p.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
		if err != nil {
			p.t.Fatal(err)
		}
		pending, err := strconv.ParseUint(statusField(status, "ShdPnd"), 16, 64)
		if err != nil {
			p.t.Fatalf("signals pending for process %d: %v", p.pid(), err)
		}
		if pending&(1<<(sig-1)) != 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%v is never pending for program %v (%d)", sig, p.cmd.Args[1:], p.pid())
		}
	}
}

// succeed waits for the program's end, which must be a good one.
func (p *program) succeed() {
	p.t.Helper()
	if err := p.wait(); err != nil {
		rest, _ := io.ReadAll(p.out)
		p.t.Errorf("program %v: %v: %s", p.cmd.Args[1:], err, rest)
	}
}

// kill ends the program, and waits until it is gone.
func (p *program) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	p.wait()
}

// cat reads a file through the mount, by a program of its own.
func (m *mounted) cat(name, want string) {
	m.t.Helper()
	p := m.startProgram("/bin/cat", m.path(name))
	p.expect(want)
	p.succeed()
}
