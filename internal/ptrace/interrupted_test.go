package ptrace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// outcome is the last line of the victim fixture.
type outcome struct {
	kind    string // "errno" or "result"
	value   int
	ms      int
	handled int
	mask    string
}

func (f *fixture) outcome() outcome {
	f.tb.Helper()
	line := f.expect("")
	var o outcome
	if n, err := fmt.Sscanf(line, "%s %d ms=%d handled=%d mask=%s", &o.kind, &o.value, &o.ms, &o.handled, &o.mask); n != 5 {
		f.tb.Fatalf("said %q: %v", line, err)
	}
	return o
}

// asleep waits until the process sleeps in a system call that is not a write.
func (f *fixture) asleep() {
	f.tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.pid))
		if i := bytes.LastIndexByte(stat, ')'); i > 0 && (stat[i+2] == 'S' || stat[i+2] == 'D') {
			return
		}
		time.Sleep(time.Millisecond)
	}
	f.tb.Fatalf("not asleep:\n%s", f.state())
}

// What a batch, and a signal that arrives while it runs, do to a system call
// that the thread was interrupted in.
func TestInterruptedCall(t *testing.T) {
	const eintr, eagain, etimedout = int(unix.EINTR), int(unix.EAGAIN), int(unix.ETIMEDOUT)
	for _, c := range []struct {
		call, flag string
		signal     bool
		want       outcome // ms: at least
	}{
		// Without a signal, nothing is to be seen.
		{"nanosleep", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"poll", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"select", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"epoll", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"futex", "", false, outcome{"errno", etimedout, 590, 0, "kept"}},
		{"recv-timeout", "", false, outcome{"errno", eagain, 590, 0, "kept"}},
		{"semop", "", false, outcome{"errno", eagain, 590, 0, "kept"}},
		{"wait", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"masked-ppoll", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"masked-pselect", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"masked-epoll", "", false, outcome{"result", 0, 590, 0, "kept"}},
		{"masked-sigtimedwait", "", false, outcome{"errno", eagain, 590, 0, "kept"}},
		// With one, the kernel's own rules hold (signal(7)).
		{"pause", "", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"pause", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"read", "", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"read", "restart", true, outcome{"result", 1, 0, 1, "kept"}},
		{"nanosleep", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"poll", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"select", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"epoll", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"futex", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"wait", "restart", true, outcome{"result", 0, 590, 1, "kept"}},
		{"wait", "", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"sigsuspend", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"masked-sigsuspend", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"masked-ppoll", "restart", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"masked-pselect", "", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"masked-epoll", "", true, outcome{"errno", eintr, 0, 1, "kept"}},
		{"masked-sigtimedwait", "", true, outcome{"result", int(unix.SIGUSR1), 0, 0, "kept"}},
	} {
		for _, how := range []struct {
			name string
			do   func(context.Context, *fixture, *Thread, bool) error
		}{
			{"seized", seizedOnly}, {"before", signalBefore}, {"during", signalDuring}, {"syscall", signalAfterSyscall},
		} {
			t.Run(fmt.Sprintf("%s%s/signal=%v/%s", c.call, c.flag, c.signal, how.name), func(t *testing.T) {
				t.Parallel()
				f := start(t, "victim", c.call, c.flag)
				f.asleep()
				tr, ctx := newTracer(t), withTime(t)
				p := must(tr.Seize(ctx, f.pid))(t)
				if err := how.do(ctx, f, p.Threads[0], c.signal); err != nil {
					t.Error(err)
				}
				check(t, p.Release())
				if c.call == "read" && c.flag == "restart" {
					f.in.Write([]byte("x"))
				}
				got := f.outcome()
				if got.ms < c.want.ms || got.ms > 8000 {
					t.Errorf("took %d ms, want %d at least", got.ms, c.want.ms)
				}
				if got.ms = c.want.ms; got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
				f.ends()
			})
		}
	}
}

// usr1 sends the signal if it is to be sent.
func usr1(pid int, send bool) error {
	if !send {
		return nil
	}
	return unix.Kill(pid, unix.SIGUSR1)
}

func seizedOnly(_ context.Context, f *fixture, _ *Thread, send bool) error { return usr1(f.pid, send) }

func signalBefore(ctx context.Context, f *fixture, th *Thread, send bool) error {
	if err := usr1(f.pid, send); err != nil {
		return err
	}
	_, err := th.Run(ctx, calls(5))
	return err
}

// signalDuring has the program itself send the signal, so that it arrives for
// certain while the batch runs; then there is a second batch.
func signalDuring(ctx context.Context, f *fixture, th *Thread, send bool) error {
	p := calls(2)
	if send {
		p.Syscall(unix.SYS_KILL, Int(f.pid), Int(int(unix.SIGUSR1)))
	}
	_, err := th.Run(ctx, p)
	_, err2 := th.Run(ctx, calls(2))
	return errors.Join(err, err2)
}

func signalAfterSyscall(ctx context.Context, f *fixture, th *Thread, send bool) error {
	if _, err := th.Syscall(ctx, unix.SYS_GETPID); err != nil {
		return err
	}
	return usr1(f.pid, send)
}
