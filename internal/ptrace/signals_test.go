package ptrace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// await polls until cond holds: what /proc says has no event to wait for.
func await(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within 10 s", what)
		}
	}
}

func state(tb testing.TB, pid int) byte {
	st, err := readStatus(pid)
	if err != nil {
		tb.Fatal(err)
	}
	return st.State
}

func TestStoppedProcessIsStoppedAgain(t *testing.T) {
	f := start(t, "workers")
	f.signal(unix.SIGSTOP)
	await(t, "stop", func() bool { return state(t, f.pid) == 'T' })
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	for _, th := range p.Threads {
		if !th.GroupStopped {
			t.Errorf("thread %d is not said to be stopped with its group", th.TID)
		}
		must(th.Run(ctx, calls(3)))(t)
		must(th.Syscall(ctx, unix.SYS_GETPID))(t)
	}
	check(t, p.Release())
	await(t, "stop after release", func() bool { return state(t, f.pid) == 'T' })
	f.signal(unix.SIGCONT)
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// Signals that the program itself sends arrive while it runs, for certain.
func TestStopAndContinueDuringBatch(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []unix.Signal
		stopped bool
	}{
		{"SIGSTOP", []unix.Signal{unix.SIGSTOP}, true},
		{"SIGTSTP", []unix.Signal{unix.SIGTSTP}, true},
		{"SIGSTOP SIGCONT", []unix.Signal{unix.SIGSTOP, unix.SIGCONT}, false},
		{"SIGCONT", []unix.Signal{unix.SIGCONT}, false},
		{"SIGSTOP SIGCONT SIGSTOP", []unix.Signal{unix.SIGSTOP, unix.SIGCONT, unix.SIGSTOP}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, "workers")
			tr, ctx := newTracer(t), withTime(t)
			p := must(tr.Seize(ctx, f.pid))(t)
			for _, th := range p.Threads {
				prog := calls(2)
				for _, sig := range c.signals {
					prog.Syscall(unix.SYS_KILL, Int(f.pid), Int(int(sig)))
					prog.Syscall(unix.SYS_GETPID)
				}
				must(th.Run(ctx, prog))(t)
			}
			check(t, p.Release())
			if c.stopped {
				await(t, "stop", func() bool { return state(t, f.pid) == 'T' })
				f.signal(unix.SIGCONT)
			}
			f.signal(unix.SIGUSR2)
			f.expect("fine")
			f.ends()
		})
	}
}

func TestKilledDuringBatch(t *testing.T) {
	for _, c := range []struct {
		name string
		prog func(pid int) *Program
	}{
		{"SIGKILL", func(pid int) *Program {
			p := calls(1)
			p.Syscall(unix.SYS_KILL, Int(pid), Int(int(unix.SIGKILL)))
			return p
		}},
		{"exit_group", func(int) *Program {
			p := calls(1)
			p.Syscall(unix.SYS_EXIT_GROUP, Int(3))
			return p
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, "workers")
			tr, ctx := newTracer(t), withTime(t)
			p := must(tr.Seize(ctx, f.pid))(t)
			if _, err := p.Threads[1].Run(ctx, c.prog(f.pid)); !errors.Is(err, ErrGone) {
				t.Errorf("Run: %v, want ErrGone", err)
			}
			check(t, p.Release())
			f.cmd.Wait() // hangs if the tracer has not seen all of its threads' ends
			if _, err := tr.Seize(ctx, f.pid); !errors.Is(err, ErrGone) {
				t.Errorf("Seize: %v, want ErrGone", err)
			}
		})
	}
}

func TestKilledWhileSeized(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	f.signal(unix.SIGKILL)
	if _, err := p.Threads[0].Run(ctx, calls(1)); !errors.Is(err, ErrGone) {
		t.Errorf("Run: %v, want ErrGone", err)
	}
	check(t, p.Release())
	f.cmd.Wait()
}

// A call that would never end is ended when the time is up, by the program's
// own way of failing.
func TestTimeoutTakesTheErrorPath(t *testing.T) {
	f := start(t, "workers")
	tr := newTracer(t)
	p := must(tr.Seize(withTime(t), f.pid))(t)
	prog := NewProgram()
	fds, buf := prog.Zero(8), prog.Zero(8)
	undo := prog.Label()
	prog.Syscall(unix.SYS_PIPE2, fds, Const(0))
	prog.FailTo(undo)
	prog.Syscall(unix.SYS_READ, fds.Int32(), buf, Const(1)).Name("read of the empty pipe")
	prog.Bind(undo)
	c1 := prog.Syscall(unix.SYS_CLOSE, fds.Int32()).Ignore()
	prog.Syscall(unix.SYS_CLOSE, fds.Add(4).Int32()).Ignore()
	ctx, cancel := contextWith(100 * time.Millisecond)
	defer cancel()
	b, err := p.Leader().Run(ctx, prog)
	var call *CallError
	if !errors.Is(err, ErrTimeout) || !errors.As(err, &call) || call.Errno != unix.EINTR || !strings.Contains(call.Name, "empty pipe") {
		t.Errorf("Run: %v, want ErrTimeout and EINTR of the read", err)
	}
	if r, err := b.Result(c1); err != nil || b.Load32(fds) == 0 {
		t.Errorf("close of the pipe: %d, %v", r, err)
	}
	fd := int(int32(b.Load32(fds)))
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", f.pid, fd)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pipe %d is still open: %v", fd, err)
	}
	noScratch(t, f.pid)
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// Release in the middle of a program breaks it off.
func TestReleaseBreaksOff(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	prog := NewProgram()
	prog.Syscall(unix.SYS_PPOLL, Int(0), Int(0), Int(0), Int(0))
	b := must(p.Threads[2].Start(ctx, prog))(t)
	if _, err := p.Threads[1].Start(ctx, prog); !errors.Is(err, ErrBusy) {
		t.Errorf("second Start: %v, want ErrBusy", err)
	}
	if err := p.Release(); !errors.Is(err, ErrAbandoned) {
		t.Errorf("Release: %v, want ErrAbandoned", err)
	}
	if err := b.Wait(ctx); !errors.Is(err, ErrAbandoned) {
		t.Errorf("Wait: %v, want ErrAbandoned", err)
	}
	noScratch(t, f.pid)
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// tracerRole makes the test's own binary a tracer that dies on the way.
const tracerRole = "PTRACE_TEST_TRACER"

func dyingTracer(pid int, how string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	ctx, cancel := contextWith(10 * time.Second)
	defer cancel()
	tr := New()
	fail(tr.Do(func() error {
		p, err := tr.Seize(ctx, pid)
		if err != nil {
			return err
		}
		th := p.Threads[os.Getpid()%len(p.Threads)]
		switch how {
		case "detach":
			if err = th.StartDetached(ctx, calls(50)); errors.Is(err, ErrResidueInUse) {
				err = nil
			}
			return errors.Join(err, p.Release())
		case "start":
			_, err = th.Start(ctx, calls(50))
		case "mapped": // between the mapping and the start
			err = (&Launch{Thread: th, Program: calls(50)}).prepare(ctx, lingerTime)
		case "aimed":
			var in *injection
			if in, err = th.enter(4096, 0); err == nil {
				err = in.aim(modeMap, unix.SYS_MMAP, 0, 4096, 3, unix.MAP_SHARED|unix.MAP_ANONYMOUS, ^uint64(0), 0)
			}
		}
		if err != nil && !errors.Is(err, ErrResidueInUse) {
			return err
		}
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}))
}

func runDyingTracer(t *testing.T, pid int, how string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", tracerRole, pid, how))
	out, err := cmd.CombinedOutput()
	if killed := cmd.ProcessState.String() == "signal: killed"; killed == (how == "detach") || len(out) > 0 {
		t.Fatalf("tracer: %v\n%s", err, out)
	}
}

// Nobody has to clean up after a dead tracer before the next batch.
func TestBatchCleansUp(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	for range 5 {
		runDyingTracer(t, f.pid, "start")
		await(t, "batch", func() bool {
			p := must(tr.Seize(ctx, f.pid))(t)
			defer func() { check(t, p.Release()) }()
			_, err := p.Leader().Run(ctx, calls(1))
			if err != nil && !errors.Is(err, ErrResidueInUse) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	p := must(tr.Seize(ctx, f.pid))(t)
	if found, err := p.CleanResidue(); found || err != nil {
		t.Errorf("CleanResidue after a batch: %v, %v; want nothing", found, err)
	}
	// One that was let go with a batch may be anywhere in it.
	check(t, p.Leader().StartDetached(ctx, calls(1)))
	if _, err := p.Threads[0].Run(ctx, calls(1)); !errors.Is(err, ErrResidueInUse) {
		t.Errorf("Run after StartDetached: %v, want ErrResidueInUse", err)
	}
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

func TestTracerDies(t *testing.T) {
	for _, c := range []struct {
		how    string
		rounds int
	}{{"start", 100}, {"mapped", 40}, {"aimed", 40}, {"detach", 40}} {
		t.Run(c.how, func(t *testing.T) {
			f := start(t, "workers")
			for range c.rounds {
				runDyingTracer(t, f.pid, c.how)
			}
			tr, ctx := newTracer(t), withTime(t)
			var found bool
			await(t, "clean", func() bool {
				p := must(tr.Seize(ctx, f.pid))(t)
				defer func() { check(t, p.Release()) }()
				var err error
				if found, err = p.CleanResidue(); err != nil && !errors.Is(err, ErrResidueInUse) {
					t.Fatal(err)
				}
				return err == nil
			})
			if !found {
				t.Error("no residue found")
			}
			p := must(tr.Seize(ctx, f.pid))(t)
			noScratch(t, f.pid)
			must(p.Leader().Run(ctx, calls(1)))(t)
			check(t, p.Release())
			f.signal(unix.SIGUSR2)
			f.expect("fine") // the fixture looks at its signal mask as well
			f.ends()
		})
	}
}
