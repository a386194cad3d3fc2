package ptrace

import "testing"

func BenchmarkSeizeRelease(b *testing.B) {
	f := start(b, "sleepers")
	tr, ctx := newTracer(b), withTime(b)
	check(b, tr.Do(func() error {
		for b.Loop() {
			p, err := tr.Seize(ctx, f.pid)
			if err != nil {
				return err
			}
			if err := p.Release(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// BenchmarkRound is the whole of it: seize four threads, 22 calls, let go.
func BenchmarkRound(b *testing.B) {
	f := start(b, "sleepers")
	tr, ctx := newTracer(b), withTime(b)
	prog := calls(22)
	check(b, tr.Do(func() error {
		for b.Loop() {
			p, err := tr.Seize(ctx, f.pid)
			if err != nil {
				return err
			}
			if _, err := p.Leader().Run(ctx, prog); err != nil {
				return err
			}
			if err := p.Release(); err != nil {
				return err
			}
		}
		return nil
	}))
}

func BenchmarkRun(b *testing.B) {
	f := start(b, "sleepers")
	tr, ctx := newTracer(b), withTime(b)
	prog := calls(22)
	p := must(tr.Seize(ctx, f.pid))(b)
	check(b, tr.Do(func() error {
		for b.Loop() {
			if _, err := p.Leader().Run(ctx, prog); err != nil {
				return err
			}
		}
		return nil
	}))
	check(b, p.Release())
}

func BenchmarkSyscall(b *testing.B) {
	f := start(b, "sleepers")
	tr, ctx := newTracer(b), withTime(b)
	p := must(tr.Seize(ctx, f.pid))(b)
	check(b, tr.Do(func() error {
		for b.Loop() {
			if _, err := p.Leader().Syscall(ctx, 39); err != nil { // getpid
				return err
			}
		}
		return nil
	}))
	check(b, p.Release())
}

func calls(n int) *Program {
	p := NewProgram()
	for range n {
		p.Syscall(39)
	}
	return p
}
