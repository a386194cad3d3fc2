package ptrace

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process in exec holds a mutex that PTRACE_SEIZE waits for, here for as
// long as another tracer takes no note of a thread's death. Seize must not
// wait longer than it was told to, and must let go of everything.
func TestSeizeDuringEndlessExec(t *testing.T) {
	f, other := start(t, "leaving", "exec"), start(t, "workers")
	holder, tr := newTracer(t), newTracer(t)
	var execs, sleeps int
	if _, err := fmt.Sscanf(f.said, "ready %d %d", &execs, &sleeps); err != nil {
		t.Fatal(err)
	}
	check(t, holder.Do(func() error { return requestInt(unix.PTRACE_SEIZE, sleeps, 0) }))
	f.in.Write([]byte("x"))
	await(t, "exec", func() bool { return state(t, execs) == 'D' && state(t, sleeps) == 'Z' })

	ctx, cancel := contextWith(50 * time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := tr.SeizeAll(ctx, []int{other.pid, f.pid})
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("%v, want ErrTimeout", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	untouched(t, other.pid)

	holder.Close()
	f.expect("execed")
	p := must(tr.Seize(withTime(t), f.pid))(t)
	if len(p.Threads) != 1 || p.Threads[0].TID != f.pid {
		t.Errorf("%d threads, the first %d, want only %d", len(p.Threads), p.Threads[0].TID, f.pid)
	}
	must(p.Leader().Run(withTime(t), calls(3)))(t)
	check(t, p.Release())
	other.signal(unix.SIGUSR2)
	other.expect("fine")
	other.ends()
}

// A leader that exits before, while and after its process is seized.
func TestSeizeLeaderLeaves(t *testing.T) {
	for round := range 40 {
		f := start(t, "leaving", "leader", fmt.Sprint(round%4))
		tr, ctx := newTracer(t), withTime(t)
		for leader := true; leader; {
			p := must(tr.Seize(ctx, f.pid))(t)
			leader = p.Leader().TID == f.pid
			must(p.Leader().Run(ctx, calls(3)))(t)
			check(t, p.Release())
		}
		f.in.Write([]byte("q"))
		f.expect("fine")
		f.ends() // hangs if the tracer does not wait for the leader as well
	}
}

// Every thread may exec, at the time that it is worst.
func TestSeizeExecs(t *testing.T) {
	for range 40 {
		f := start(t, "leaving", "exec")
		tr, ctx := newTracer(t), withTime(t)
		f.in.Write([]byte("x"))
		for range 20 {
			p := must(tr.Seize(ctx, f.pid))(t)
			must(p.Leader().Run(ctx, calls(3)))(t)
			check(t, p.Release())
		}
		f.expect("execed")
		p := must(tr.Seize(ctx, f.pid))(t)
		if len(p.Threads) != 1 || p.Threads[0].TID != f.pid {
			t.Errorf("%d threads, the first %d, want only %d", len(p.Threads), p.Threads[0].TID, f.pid)
		}
		check(t, p.Release())
	}
}
