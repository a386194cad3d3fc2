package ptrace

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A thread that may not make system calls makes those of a batch, and none
// afterwards.
func TestSeccompIsSuspended(t *testing.T) {
	for _, c := range []struct {
		mode string
		want int
		by   unix.Signal // what kills it for getpid
	}{{"strict", 1, unix.SIGKILL}, {"filter", 2, unix.SIGSYS}} {
		t.Run(c.mode, func(t *testing.T) {
			f := start(t, "guarded", c.mode)
			tr, ctx := newTracer(t), withTime(t)
			await(t, "seccomp", func() bool { return must(readStatus(f.pid))(t).Seccomp == c.want })
			f.asleep()
			for range 3 {
				p := must(tr.Seize(ctx, f.pid))(t)
				prog, tid, _, _ := pipeline()
				b := must(p.Leader().Run(ctx, prog))(t)
				if got := must(b.Result(tid))(t); got != uint64(f.pid) {
					t.Errorf("gettid: %d, want %d", got, f.pid)
				}
				if got := must(p.Leader().Syscall(ctx, unix.SYS_GETPID))(t); got != uint64(f.pid) {
					t.Errorf("getpid: %d, want %d", got, f.pid)
				}
				if err := p.Leader().StartDetached(ctx, calls(1)); !errors.Is(err, ErrSeccomp) {
					t.Errorf("StartDetached: %v, want ErrSeccomp", err)
				}
				check(t, p.Release())
			}
			f.in.Write([]byte("x"))
			f.expect("fine")
			f.killedBy(c.by)
		})
	}
}

// A batch that is broken off leaves the filters in force.
func TestSeccompAfterTimeout(t *testing.T) {
	f := start(t, "guarded", "filter")
	tr, ctx := newTracer(t), withTime(t)
	await(t, "seccomp", func() bool { return must(readStatus(f.pid))(t).Seccomp == 2 })
	p := must(tr.Seize(ctx, f.pid))(t)
	prog := NewProgram()
	prog.Syscall(unix.SYS_PPOLL, Int(0), Int(0), Int(0), Int(0))
	must(p.Leader().Start(ctx, prog))(t)
	if err := p.Release(); !errors.Is(err, ErrAbandoned) {
		t.Errorf("Release: %v, want ErrAbandoned", err)
	}
	f.in.Write([]byte("x"))
	f.expect("fine")
	f.killedBy(unix.SIGSYS)
}

func TestDispatch(t *testing.T) {
	for _, c := range []struct {
		mode string
		want error
	}{{"blocked", ErrDispatch}, {"allowed", nil}} {
		t.Run(c.mode, func(t *testing.T) {
			f := start(t, "guarded", c.mode)
			tr, ctx := newTracer(t), withTime(t)
			if c.mode == "blocked" {
				// Up to its loop the selector lets calls through.
				await(t, "refusal", func() bool {
					p := must(tr.Seize(ctx, f.pid))(t)
					defer func() { check(t, p.Release()) }()
					_, err := p.Leader().Run(ctx, calls(1))
					return errors.Is(err, ErrDispatch)
				})
			} else {
				f.asleep()
			}
			p := must(tr.Seize(ctx, f.pid))(t)
			if _, err := p.Leader().Run(ctx, calls(3)); !errors.Is(err, c.want) {
				t.Errorf("Run: %v, want %v", err, c.want)
			}
			if _, err := p.Leader().Syscall(ctx, unix.SYS_GETPID); !errors.Is(err, c.want) {
				t.Errorf("Syscall: %v, want %v", err, c.want)
			}
			check(t, p.Release())
			if c.mode == "blocked" {
				f.signal(unix.SIGSEGV)
			}
			f.in.Write([]byte("x"))
			f.expect("fine")
			f.expect("checked")
			f.ends()
		})
	}
}

// A fault in a batch takes the thread out of it, and the process does not
// learn of it: neither by its handler, nor by losing that.
func TestFaultPutsBack(t *testing.T) {
	for _, how := range []string{"wait", "release"} {
		t.Run(how, func(t *testing.T) {
			f := start(t, "guarded", "handler")
			f.asleep()
			tr, ctx := newTracer(t), withTime(t)
			p := must(tr.Seize(ctx, f.pid))(t)
			before := p.Leader().Regs()
			prog := calls(2)
			prog.BranchEqual(Ref{1 << 46}, 0, end)
			b := must(p.Leader().Start(ctx, prog))(t)
			if how == "wait" {
				if err := b.Wait(ctx); !errors.Is(err, ErrAbandoned) {
					t.Errorf("Wait: %v, want ErrAbandoned", err)
				}
				if p.Leader().Regs() != before {
					t.Error("the registers are not as they were")
				}
				content := make([]byte, p.vdso.end-p.vdso.start)
				check(t, p.ReadMem(p.vdso.start, content))
				if isResidue(content) {
					t.Error("the code is still in the vDSO")
				}
				noScratch(t, f.pid)
				must(p.Leader().Run(ctx, calls(2)))(t)
				check(t, p.Release())
			} else if err := p.Release(); !errors.Is(err, ErrAbandoned) {
				t.Errorf("Release: %v, want ErrAbandoned", err)
			}
			noScratch(t, f.pid)
			f.in.Write([]byte("x"))
			f.expect("fine")
			f.expect("checked")
			f.ends()
		})
	}
}

// One that is merely sent arrives after the batch.
func TestFaultSignalSent(t *testing.T) {
	f := start(t, "guarded", "handler", "sent")
	f.asleep()
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	prog := calls(2)
	prog.Syscall(unix.SYS_KILL, Int(f.pid), Int(int(unix.SIGSEGV)))
	n := prog.Syscall(unix.SYS_GETPID)
	b := must(p.Leader().Run(ctx, prog))(t)
	if got := must(b.Result(n))(t); got != uint64(f.pid) {
		t.Errorf("getpid after the signal: %d, want %d", got, f.pid)
	}
	if st := must(p.Leader().Status())(t); st.Blocked&sigBit(unix.SIGSEGV) != 0 {
		t.Error("the signal is still blocked")
	}
	check(t, p.Release())
	f.in.Write([]byte("x"))
	f.expect("fine")
	f.expect("checked")
	f.ends()
}
