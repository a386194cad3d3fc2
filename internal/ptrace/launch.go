package ptrace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
)

// Launch is a [Program] to be started on a thread.
type Launch struct {
	Thread  *Thread
	Program *Program
	Batch   *Batch // once it is under way

	in   *injection
	step step
}

// step is what a launch has come to.
type step int

const (
	idle     step = iota // nothing of it is in the process (any more)
	entering             // the thread is on its way to the call that maps the scratch memory
	calling              // it is in the call
	ready                // the program is there, and the registers point to it
	running
)

// StartAll is [Thread.Start] for several threads at once, of processes of this
// tracer. A thread takes longer to be given a processor than for all it has to
// do here, so none is waited for before all have been sent on their way.
//
// then is called on the tracer's thread for each launch as soon as its program is
// under way. If anything fails, its own or a launch's, those that are not under
// way yet are put back; the others have a Batch.
func (t *Tracer) StartAll(ctx context.Context, all []*Launch, then func(*Launch) error) error {
	return t.Do(func() error {
		for some := range slices.Chunk(all, atOnce) {
			if err := startSome(ctx, some, then); err != nil {
				return err
			}
		}
		return nil
	})
}

// atOnce is how many threads are sent on their way before the first is waited
// for. What a thread does is over long before so many have been seen to.
const atOnce = 32

func startSome(ctx context.Context, some []*Launch, then func(*Launch) error) (err error) {
	if err := ctx.Err(); err != nil {
		return some[0].Thread.timeout(err)
	}
	// From here on it is a matter of microseconds. Were it given up in the
	// middle, nobody would know where the mapping is.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(1+len(some)/4)*abandonTime)
	defer cancel()
	defer func() {
		if err == nil {
			return
		}
		for _, l := range some {
			err = errors.Join(err, l.putBack(ctx))
		}
	}()
	for _, l := range some {
		if err := l.begin(lingerTime); err != nil {
			return err
		}
	}
	for _, l := range some {
		if err := l.enter(ctx); err != nil {
			return err
		}
	}
	for _, l := range some {
		if err := l.load(ctx); err != nil {
			return err
		}
		if err := l.start(); err != nil {
			return err
		}
		if err := then(l); err != nil {
			return err
		}
	}
	return nil
}

// begin puts the code into the process, and sends the thread to map the scratch
// memory.
func (l *Launch) begin(linger time.Duration) (err error) {
	size := l.Program.size()
	if l.in, err = l.Thread.enter(size, linger); err != nil {
		return err
	}
	// Shared, so that the tracer sees the results after the process has
	// unmapped it, and both can meet on a futex in it.
	anywhere := ^uint64(0)
	err = l.in.aim(modeMap, unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE, anywhere, 0)
	if err != nil {
		return err
	}
	if err := l.in.begin(); err != nil {
		return err
	}
	l.step = entering
	return nil
}

func (l *Launch) enter(ctx context.Context) error {
	if err := l.in.toEntry(ctx); err != nil {
		return l.failed(err)
	}
	l.step = calling
	return nil
}

// mapped waits for the scratch memory.
func (l *Launch) mapped(ctx context.Context) error {
	base, err := l.in.toExit(ctx)
	if err == nil {
		err = errnoOf(base)
	}
	if err != nil {
		return l.failed(err)
	}
	fault.Point("ptrace: table mapped")
	l.Batch = &Batch{in: l.in, program: l.Program, base: base}
	return nil
}

// failed takes the code out of a process that has no scratch memory.
func (l *Launch) failed(err error) error {
	l.step = idle
	if l.Thread.stopped {
		err = errors.Join(err, l.in.halt(context.Background()))
	}
	err = fmt.Errorf("map %d bytes in process %d: %w", l.Program.size(), l.Thread.p.PID, err)
	return errors.Join(err, l.in.leaveAfter(err))
}

// load writes the program to the scratch memory, and points the thread at it.
func (l *Launch) load(ctx context.Context) error {
	if err := l.mapped(ctx); err != nil {
		return err
	}
	b := l.Batch
	if err := b.fill(); err != nil {
		l.step, l.Batch = idle, nil
		return errors.Join(err, b.breakOff(ctx))
	}
	l.step = ready
	r := l.in.orig
	l.in.call(&r, modeRun, unix.SYS_RT_SIGPROCMASK, []uint64{unix.SIG_SETMASK, l.in.duringAddr(), 0, sigsetSize})
	setTable(&r, b.base, b.base+l.Program.entryOffset(0))
	return l.Thread.writeRegs(&r)
}

func (l *Launch) start() error {
	th := l.Thread
	if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
		err = l.Batch.finish(err)
		l.step, l.Batch = idle, nil
		return err
	}
	l.step = running
	if th.station != (region{}) {
		th.batch = l.Batch
	} else {
		th.p.batch = l.Batch
	}
	return nil
}

// putBack takes a launch back that is not under way.
func (l *Launch) putBack(ctx context.Context) error {
	if l.step == entering {
		if err := l.enter(ctx); err != nil {
			return err
		}
	}
	if l.step == calling {
		if err := l.mapped(ctx); err != nil {
			return err
		}
		l.step = ready
	}
	if l.step != ready {
		return nil
	}
	b := l.Batch
	l.step, l.Batch = idle, nil
	return b.breakOff(ctx)
}

// prepare takes a launch to the point where the thread need only be let go.
func (l *Launch) prepare(ctx context.Context, linger time.Duration) error {
	if err := ctx.Err(); err != nil {
		return l.Thread.timeout(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime) // as in startSome
	defer cancel()
	if err := l.begin(linger); err != nil {
		return err
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	return l.load(ctx)
}
