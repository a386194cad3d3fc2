package ptrace

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turnstile is a program that stores 1 at said, wakes who waits there, and
// waits until word is no longer 0; then it stores the value 2.
func turnstile() (p *Program, said, word Ref) {
	const futexWait, futexWakeOp = 0, 5
	set := func(v int) Const { return Const(v << 12) } // FUTEX_OP_SET v, compare equal to 0
	p = NewProgram()
	said, word = p.Zero(4), p.Zero(4)
	p.Syscall(unix.SYS_FUTEX, said, Const(futexWakeOp), Const(1), Const(0), said, set(1))
	again, through := p.Label(), p.Label()
	p.Bind(again)
	p.BranchNotEqual(word, 0, through)
	p.Syscall(unix.SYS_FUTEX, word, Const(futexWait), Const(0), Const(0)).Ignore()
	p.Goto(again)
	p.Bind(through)
	p.Syscall(unix.SYS_FUTEX, said, Const(futexWakeOp), Const(1), Const(0), said, set(2))
	return p, said, word
}

// wake lets the program through.
func (b *Batch) wake(r Ref) {
	b.Store32(r, 1)
	const futexWake = 1
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.word(r))), futexWake, 1, 0, 0, 0)
}

func TestAwait32(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	prog, said, word := turnstile()
	for _, th := range p.Threads {
		b := must(th.Start(ctx, prog))(t)
		if got := must(b.Await32(ctx, said, 0))(t); got != 1 {
			t.Errorf("first: %d, want 1", got)
		}
		brief, cancel := contextWith(20 * time.Millisecond)
		if got, err := b.Await32(brief, said, 1); got != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing new: %d, %v, want 1 and the deadline's error", got, err)
		}
		cancel()
		b.wake(word)
		if got := must(b.Await32(ctx, said, 1))(t); got != 2 {
			t.Errorf("second: %d, want 2", got)
		}
		// A program that has ended is not waited for.
		if got := must(b.Await32(ctx, said, 2))(t); got != 2 {
			t.Errorf("at the end: %d, want 2", got)
		}
		check(t, b.Wait(ctx))
		if got := must(b.Await32(ctx, said, 2))(t); got != 2 {
			t.Errorf("after the end: %d, want 2", got)
		}
	}
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// SIGSTOP and SIGCONT in the middle of the program keep nobody waiting.
func TestAwait32Stopped(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	prog, said, word := turnstile()
	b := must(p.Leader().Start(ctx, prog))(t)
	must(b.Await32(ctx, said, 0))(t)
	f.signal(unix.SIGSTOP)
	f.signal(unix.SIGCONT)
	b.wake(word)
	if got := must(b.Await32(ctx, said, 1))(t); got != 2 {
		t.Errorf("%d, want 2", got)
	}
	check(t, b.Wait(ctx))
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// Who is killed, or faults, does not keep us until the time is up.
func TestAwait32Ends(t *testing.T) {
	for _, c := range []struct {
		name string
		want error
		add  func(p *Program, pid int)
	}{
		{"killed", ErrGone, func(p *Program, pid int) {
			p.Syscall(unix.SYS_KILL, Int(pid), Int(int(unix.SIGKILL)))
		}},
		{"fault", ErrAbandoned, func(p *Program, _ int) { p.BranchEqual(Ref{1 << 46}, 0, end) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, "guarded", "handler")
			tr, ctx := newTracer(t), withTime(t)
			p := must(tr.Seize(ctx, f.pid))(t)
			prog := NewProgram()
			never := prog.Zero(4)
			c.add(prog, f.pid)
			b := must(p.Leader().Start(ctx, prog))(t)
			if _, err := b.Await32(ctx, never, 0); !errors.Is(err, c.want) {
				t.Errorf("Await32: %v, want %v", err, c.want)
			}
			if err := b.Wait(ctx); !errors.Is(err, c.want) {
				t.Errorf("Wait: %v, want %v", err, c.want)
			}
			check(t, p.Release())
			if c.want == ErrAbandoned {
				f.in.Write([]byte("x"))
				f.expect("fine")
				f.expect("checked")
				f.ends()
			}
		})
	}
}

// Those whose program ends are seen to before one that takes long, wherever that is
// among them.
func TestWaitAllPutsOffWhatIsSlow(t *testing.T) {
	tr, ctx := newTracer(t), withTime(t)
	slow, said, word := turnstile()
	quick, _, _, _ := pipeline()
	programs := []*Program{slow, quick, quick}
	var fixtures []*fixture
	var processes []*Process
	var batches []*Batch
	for _, prog := range programs {
		f := start(t, "workers")
		p := must(tr.Seize(ctx, f.pid))(t)
		fixtures, processes = append(fixtures, f), append(processes, p)
		batches = append(batches, must(p.Leader().Start(ctx, prog))(t))
	}
	must(batches[0].Await32(ctx, said, 0))(t)
	var order []int
	check(t, tr.WaitAll(ctx, batches, func(i int, err error) {
		check(t, err)
		order = append(order, i)
	}, func() {
		if !slices.Equal(order, []int{1, 2}) {
			t.Errorf("before the slow one: %v, want the two others", order)
		}
		for _, i := range order {
			check(t, processes[i].Release())
		}
		batches[0].wake(word)
	}))
	if !slices.Equal(order, []int{1, 2, 0}) {
		t.Errorf("order: %v, want the slow one last", order)
	}
	check(t, processes[0].Release())
	for _, f := range fixtures {
		noScratch(t, f.pid)
		f.signal(unix.SIGUSR2)
		f.expect("fine")
		f.ends()
	}
}
