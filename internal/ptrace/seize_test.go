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
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSeizeRefuses(t *testing.T) {
	tr, ctx := newTracer(t), withTime(t)
	f := start(t, "sleepers")
	gone := exec.Command("true")
	check(t, gone.Run())
	zombie := exec.Command("true")
	check(t, zombie.Start())
	defer zombie.Wait()
	await(t, "zombie", func() bool { return state(t, zombie.Process.Pid) == 'Z' })
	for _, c := range []struct {
		name string
		pid  int
		want error
	}{
		{"gone", gone.Process.Pid, ErrGone},
		{"zombie", zombie.Process.Pid, ErrGone},
		{"kernel thread", 2, ErrKernelThread},
	} {
		if _, err := tr.Seize(ctx, c.pid); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		// One that can't be seized leaves the others untouched.
		if _, err := tr.SeizeAll(ctx, []int{f.pid, c.pid}); !errors.Is(err, c.want) {
			t.Errorf("%s and another: %v, want %v", c.name, err, c.want)
		}
		untouched(t, f.pid)
	}
}

func untouched(t *testing.T, pid int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	check(t, err)
	for _, name := range tasks {
		st := must(parseStatus(must(os.ReadFile(name))(t)))(t)
		if st.TracerPID != 0 || st.State == 't' {
			t.Errorf("%s: traced by %d, state %c", name, st.TracerPID, st.State)
		}
	}
}

func TestSeizeTraced(t *testing.T) {
	f := start(t, "sleepers")
	first, second, ctx := newTracer(t), newTracer(t), withTime(t)
	p := must(first.Seize(ctx, f.pid))(t)
	_, err := second.Seize(ctx, f.pid)
	var traced *TracedError
	if !errors.As(err, &traced) || traced.Tracer != first.tid {
		t.Errorf("%v, want traced by %d", err, first.tid)
	}
	check(t, p.Release())
	p = must(second.Seize(ctx, f.pid))(t)
	check(t, p.Release())
}

// A parent in vfork waits uninterruptibly.
func TestSeizeTimesOut(t *testing.T) {
	f, other := start(t, "victim", "vfork"), start(t, "workers")
	await(t, "sleep", func() bool { return state(t, f.pid) == 'D' })
	tr := newTracer(t)
	// All of it is waited, and in it the other must have come to its stop,
	// however busy the machine is.
	ctx, cancel := contextWith(2 * time.Second)
	defer cancel()
	_, err := tr.SeizeAll(ctx, []int{other.pid, f.pid})
	var late *TimeoutError
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &late) || late.TID != f.pid || late.State != 'D' {
		t.Errorf("%v, want a TimeoutError of %d in state D", err, f.pid)
	}
	untouched(t, other.pid)
	other.signal(unix.SIGUSR2)
	other.expect("fine")
	// When it can, it goes on, though nobody asked the tracer for anything.
	f.in.Write([]byte("x"))
	if o := f.outcome(); o.kind != "result" {
		t.Errorf("%+v", o)
	}
	f.ends()
	other.ends()
}

func TestClosedTracer(t *testing.T) {
	tr := New()
	tr.Close()
	tr.Close()
	if _, err := tr.Seize(withTime(t), os.Getpid()); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}

// A tracer that is closed lets go of what it has.
func TestCloseLetsGo(t *testing.T) {
	f := start(t, "workers")
	tr := New()
	must(tr.Seize(withTime(t), f.pid))(t)
	tr.Close()
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

func init() {
	if os.Getenv(tracerRole) != "" {
		runtime.LockOSThread() // the main function on the main thread
	}
}

// mainThreadTracer is a tracer that is started on the main thread, and closed.
func mainThreadTracer(pid int) {
	t := &Tracer{calls: make(chan func()), done: make(chan struct{})}
	ready, ended := make(chan struct{}), make(chan error)
	go func() {
		<-ready
		ctx, cancel := contextWith(10 * time.Second)
		defer cancel()
		_, err := t.Seize(ctx, pid)
		t.Close()
		ended <- err
	}()
	t.run(ready)
	if err := <-ended; err != nil {
		fmt.Println(err)
	}
	fmt.Println("closed")
	io.Copy(io.Discard, os.Stdin) // until nobody needs us any more
}

// The main thread does not end with a goroutine: a tracer must not be there.
func TestTracerOnMainThread(t *testing.T) {
	f := start(t, "workers")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d main", tracerRole, f.pid))
	in, out := must(cmd.StdinPipe())(t), must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	defer cmd.Wait()
	defer in.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "closed\n" {
		t.Fatalf("tracer: said %q (%v)", line, err)
	}
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// Threads that come and go, and exec, while the process is seized again and
// again: when Seize returns, every thread there is has stopped.
func TestSeizeChurn(t *testing.T) {
	for _, mode := range []string{"threads", "exec"} {
		t.Run(mode, func(t *testing.T) {
			var args []string
			if mode == "exec" {
				args = []string{mode}
			}
			f := start(t, "churn", args...)
			tr, ctx := newTracer(t), withTime(t)
			prog := calls(3)
			for range 400 {
				p, err := tr.Seize(ctx, f.pid)
				if err != nil {
					f.cmd.Process.Kill()
					f.cmd.Wait()
					t.Fatalf("%v (ended: %v)", err, f.cmd.ProcessState)
				}
				tasks := must(filepath.Glob(fmt.Sprintf("/proc/%d/task/*", f.pid)))(t)
				for _, task := range tasks {
					text, err := os.ReadFile(task + "/status")
					if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
						continue // it was dying
					}
					st := must(parseStatus(text))(t)
					if st.State != 't' && st.State != 'Z' && st.State != 'X' {
						t.Errorf("%s is in state %c", task, st.State)
					}
				}
				if _, err := p.Threads[len(p.Threads)-1].Run(ctx, prog); err != nil {
					t.Errorf("Run: %v", err)
				}
				check(t, p.Release())
			}
			if mode == "threads" {
				f.signal(unix.SIGTERM)
				f.expect("fine")
				f.ends()
			}
		})
	}
}

// A thread that is interrupted within a restartable sequence must not commit
// it after a batch.
func TestRestartableSequence(t *testing.T) {
	f := start(t, "rseq")
	tr, ctx := newTracer(t), withTime(t)
	prog := calls(3)
	moved := 0
	const rounds = 2000
	for range rounds {
		check(t, tr.Do(func() error {
			p, err := tr.Seize(ctx, f.pid)
			if err != nil {
				return err
			}
			th := p.Threads[0]
			before := th.Regs()
			if _, err = th.Run(ctx, prog); err == nil && th.Regs() != before {
				moved++
			}
			return errors.Join(err, p.Release())
		}))
	}
	f.signal(unix.SIGTERM)
	var commits, aborts int
	line := f.expect("commits")
	if n, err := fmt.Sscanf(line, "commits %d aborts %d", &commits, &aborts); n != 2 {
		t.Fatalf("said %q: %v", line, err)
	}
	f.ends()
	t.Logf("%s, %d moved in %d rounds", line, moved, rounds)
	if moved == 0 || aborts < moved {
		t.Errorf("%d aborts, but %d times moved to the abort handler", aborts, moved)
	}
}
