package ptrace

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batch is a run of a [Program] by a thread.
type Batch struct {
	in      *injection
	program *Program
	base    uint64 // of the scratch mapping, in the process
	mem     []byte // the same memory, mapped here for as long as b is in use
	over    bool
	told    bool  // the thread is asked to stop at the end, to which it has come
	err     error // what Wait returns once it is over
}

// Run makes the thread work through the program, and waits for its end. See
// [Batch.Wait].
func (th *Thread) Run(ctx context.Context, p *Program) (*Batch, error) {
	var b *Batch
	err := th.p.t.Do(func() (err error) {
		if b, err = th.Start(ctx, p); err != nil {
			return err
		}
		return b.Wait(ctx)
	})
	return b, err
}

// Start sets the thread going through the program and returns. All other
// threads of the process stay stopped; its process has one batch at a time, and
// one more for each thread with a station ([Process.MakeStations]).
// When Start has returned, the program runs to its end whatever becomes of the
// tracer.
func (th *Thread) Start(ctx context.Context, p *Program) (*Batch, error) {
	l := &Launch{Thread: th, Program: p}
	if err := th.p.t.StartAll(ctx, []*Launch{l}, func(*Launch) error { return nil }); err != nil {
		return nil, err
	}
	return l.Batch, nil
}

// StartDetached sets the thread going and lets it go at once: nobody waits for
// the end, nobody learns the results. The code stays in the vDSO, for
// [Process.CleanResidue] to remove. The thread is no longer one of its
// process's Threads. One that is stopped by a signal runs the program when it
// is continued.
func (th *Thread) StartDetached(ctx context.Context, p *Program) error {
	return th.p.t.Do(func() error {
		// They are in force again as soon as it is let go.
		if filtered, err := th.filtered(); err != nil {
			return err
		} else if filtered {
			return fmt.Errorf("thread %d of process %d: %w without a tracer", th.TID, th.p.PID, ErrSeccomp)
		}
		l := &Launch{Thread: th, Program: p}
		if err := l.prepare(ctx, 0); err != nil {
			return err
		}
		if err := requestInt(unix.PTRACE_DETACH, th.TID, 0); err != nil {
			return th.failed("let go", err)
		}
		th.stopped, th.gone = false, true // as far as this tracer is concerned
		th.p.prune()
		th.p.loose = true
		return nil
	})
}

// lingerTime is how long a thread waits at the end of a program to be stopped,
// before it runs on. A tracer takes microseconds; one that is dead costs the
// process this much.
const lingerTime = 100 * time.Millisecond

// duringAddr is the address of the mask for the batch.
func (in *injection) duringAddr() uint64 {
	return in.place.start + uint64(stateOffset) + uint64(unsafe.Offsetof(saved{}.during))
}

// fill maps the scratch memory here as well, and writes the program to it.
func (b *Batch) fill() error {
	size := b.program.size()
	name := b.in.th.p.proc(fmt.Sprintf("map_files/%x-%x", b.base, b.base+size))
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(fd)
	mem, err := mapShared(fd, size)
	if err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	b.mem = mem
	// Not at the batch's end: as long as other threads of ours run, taking a
	// mapping away interrupts all processors, and processes are stopped then.
	runtime.AddCleanup(b, func(mem []byte) { unmap(mem) }, mem)
	return b.program.assemble(b.mem, b.base)
}

func (b *Batch) done() *uint32 { return (*uint32)(unsafe.Pointer(&b.mem[0])) }

// Wait waits until the program has ended and the thread has stopped again,
// with everything put back. The error is a [*CallError] if a call failed that
// was not to be ignored; [ErrGone] if the process was killed. If ctx ends
// first, the call that the thread waits in ends with EINTR, so that the
// program's own way of failing is gone, and the error is an [ErrTimeout].
func (b *Batch) Wait(ctx context.Context) error {
	return b.in.th.p.t.Do(func() error {
		if b.over {
			return b.err
		}
		err := b.wait(ctx)
		if err == nil {
			err = b.stopAtEnd(ctx)
		}
		var late *TimeoutError
		if errors.As(err, &late) {
			err = b.cancel(late)
		}
		if err != nil && !b.over && !errors.Is(err, ErrGone) {
			ctx, cancel := context.WithTimeout(context.Background(), abandonTime)
			defer cancel()
			err = errors.Join(err, b.putBack(ctx))
		}
		return b.finish(err)
	})
}

// WaitAll is [Batch.Wait] for many batches of the tracer's processes: each thread
// is asked to stop as soon as its program has ended, before any is waited for. then
// is called on the tracer's thread with the index of a batch and what Wait would have
// returned, and may let its process go. Those that take long come last; slow is called
// before each of them, and may let go whatever then was called for.
func (t *Tracer) WaitAll(ctx context.Context, all []*Batch, then func(int, error), slow func()) error {
	return t.Do(func() error {
		patience := slowTime + time.Duration(len(all))*time.Millisecond
		var late []int
		for first := 0; first < len(all); first += atOnce {
			some := all[first:min(first+atOnce, len(all))]
			for i, took := range tellToStop(ctx, some, patience) {
				if took {
					late = append(late, first+i)
				} else {
					then(first+i, some[i].Wait(ctx))
				}
			}
		}
		for _, i := range late {
			slow()
			then(i, all[i].Wait(ctx))
		}
		return nil
	})
}

// slowTime is longer than a program takes whose calls wait for nobody, and which has
// a processor to itself.
const slowTime = 20 * time.Millisecond

// tellToStop asks the threads of some to stop when their programs have ended, and says
// which had not after so much time.
func tellToStop(ctx context.Context, some []*Batch, patience time.Duration) (late []bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	late = make([]bool, len(some))
	for i, b := range some {
		if b.over {
			continue
		}
		err := b.wait(ctx)
		switch {
		case b.over: // the thread was found to have left it
			b.finish(err)
		case err == nil:
			b.told = b.in.th.interrupt() == nil
		default: // Wait tells of errors
			late[i] = errors.Is(err, ErrTimeout)
		}
	}
	return late
}

// checkInterval is how often Wait looks whether the thread was killed or
// stopped, while it sleeps until the program ends.
const checkInterval = 2 * time.Millisecond

// wait sleeps until the program has ended, or the thread has left the code.
func (b *Batch) wait(ctx context.Context) error {
	const futexWait = 0
	interval := unix.NsecToTimespec(int64(checkInterval))
	for atomic.LoadUint32(b.done()) == 0 {
		if s, ok := b.in.th.poll(); ok {
			if err := b.stoppedAt(s); err != nil || b.over {
				return err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return b.in.th.timeout(err)
		}
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.done())), futexWait, 0, uintptr(unsafe.Pointer(&interval)), 0, 0)
	}
	return nil
}

// stopAtEnd stops the thread once the program has ended.
func (b *Batch) stopAtEnd(ctx context.Context) error {
	th := b.in.th
	for !b.over {
		if !b.told {
			if err := th.interrupt(); err != nil {
				return err
			}
		}
		b.told = false // any stop takes it back
		s, err := th.await(ctx)
		if err != nil {
			return err
		}
		if err := b.stoppedAt(s); err != nil {
			return err
		}
	}
	return nil
}

// stoppedAt looks at where the thread of a batch has stopped: if it is past
// the program, it is put back, and the batch is over; if not, it goes on.
func (b *Batch) stoppedAt(s stop) error {
	th := b.in.th
	if s.kind == stopGone {
		return th.isGone()
	}
	if s.kind == stopEvent {
		th.GroupStopped = s.grouped()
	}
	var r Regs
	if err := th.readRegs(&r); err != nil {
		return err
	}
	inside := b.in.place.has(programCounter(&r))
	switch {
	case inside && programCounter(&r) < b.in.place.start+unmappedOffset:
		sig, err := b.in.pass(s)
		if err != nil {
			return err
		}
		return th.resume(unix.PTRACE_CONT, sig)
	case inside || r == b.in.away:
		// It has run nothing of its own since. With the registers that it
		// was interrupted with, the kernel decides between a restart and
		// EINTR by itself, according to the signal that comes first.
		if err := b.in.leave(); err != nil {
			return err
		}
	default: // it ran on before it was stopped
		if err := b.in.clear(); err != nil {
			return err
		}
	}
	b.over = true
	if s.kind == stopEvent {
		return th.stoppedAgain()
	}
	if err := th.interrupt(); err != nil {
		return err
	}
	if err := th.resume(unix.PTRACE_CONT, s.deliverable()); err != nil {
		return err
	}
	if err := th.settle(context.Background()); err != nil {
		return err
	}
	return th.stoppedAgain()
}

// cancel ends every call that the thread waits in with EINTR, and gives the
// program a moment to end itself. Then it is broken off.
func (b *Batch) cancel(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), abandonTime)
	defer cancel()
	for {
		err := b.nudge(ctx)
		var late *TimeoutError
		switch {
		case err == nil:
			return errors.Join(cause, b.failure()) // usually the call that was ended
		case !errors.As(err, &late):
			return errors.Join(cause, err)
		case ctx.Err() != nil:
			grace, cancel := context.WithTimeout(context.Background(), abandonTime)
			defer cancel()
			return errors.Join(cause, b.abandon(grace))
		}
		// It had not come yet to the call that it waits in now.
	}
}

// nudgeTime is how long a program may take to end after a call of it was ended,
// before it is looked at again.
const nudgeTime = 20 * time.Millisecond

// nudge ends the call that the thread waits in, if it does, and waits a moment
// for the program's end.
func (b *Batch) nudge(ctx context.Context) error {
	th := b.in.th
	if err := b.in.halt(ctx); err != nil {
		return err
	}
	var r Regs
	if err := th.readRegs(&r); err != nil {
		return err
	}
	pc := programCounter(&r)
	if !b.in.place.has(pc) || pc >= b.in.place.start+unmappedOffset {
		return b.stoppedAt(stop{kind: stopEvent, sig: unix.SIGTRAP})
	}
	if th.endCall(&r) {
		if err := th.writeRegs(&r); err != nil {
			return err
		}
	}
	if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
		return err
	}
	moment, cancel := context.WithTimeout(ctx, nudgeTime)
	defer cancel()
	if err := b.wait(moment); err != nil {
		return err
	}
	return b.stopAtEnd(ctx)
}

// abandon stops the thread wherever it is in the program, and puts it back.
func (b *Batch) abandon(ctx context.Context) error {
	if b.over {
		return nil
	}
	return b.finish(errors.Join(ErrAbandoned, b.putBack(ctx)))
}

// putBack takes the thread out of the program, running or not.
func (b *Batch) putBack(ctx context.Context) error {
	if err := b.in.halt(ctx); err != nil {
		return err
	}
	return b.breakOff(ctx)
}

// breakOff takes a stopped thread out of the program.
func (b *Batch) breakOff(ctx context.Context) error {
	in := b.in
	if err := in.aim(modeSingle, unix.SYS_MUNMAP, b.base, b.program.size()); err != nil {
		return err
	}
	_, err := in.single(ctx)
	return errors.Join(err, in.leaveAfter(err))
}

// finish notes how the batch ended, and keeps a copy of its memory.
func (b *Batch) finish(err error) error {
	if b.in.th.p.batch == b {
		b.in.th.p.batch = nil
	}
	if b.in.th.batch == b {
		b.in.th.batch = nil
	}
	b.over = true
	if b.err = err; err == nil {
		b.err = b.failure()
	}
	return b.err
}

// mapShared maps what fd is open on, all pages at once. It bypasses unix.Mmap,
// which keeps a table of all its mappings under one lock.
func mapShared(fd int, size uint64) ([]byte, error) {
	at, _, e := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_POPULATE, uintptr(fd), 0)
	if e != 0 {
		return nil, e
	}
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at))), size), nil
}

func unmap(mem []byte) {
	// Fails only for an address that isn't one.
	unix.Syscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), 0)
}

// failure is the error of the call that ended the program, if one did.
func (b *Batch) failure() error {
	failed := (*header)(unsafe.Pointer(&b.mem[0])).failed
	if failed == 0 {
		return nil
	}
	for i, at := range b.program.calls {
		if failed == b.base+b.program.entryOffset(at) {
			e := &CallError{PID: b.in.th.p.PID, Index: i, Name: b.program.names[i]}
			e.Errno, _ = errnoOf(b.entry(at).result).(unix.Errno)
			return e
		}
	}
	return fmt.Errorf("process %d: %w: its table was overwritten", b.in.th.p.PID, ErrAbandoned)
}

func (b *Batch) entry(line int) *entry {
	return (*entry)(unsafe.Pointer(&b.mem[b.program.entryOffset(line)]))
}

// Result returns what a call of the program returned, its errno as the error.
// A call that was never made has the result 0.
func (b *Batch) Result(c *Call) (uint64, error) {
	r := b.entry(c.line).result
	return r, errnoOf(r)
}

// Bytes returns a copy of n bytes of the program's data.
func (b *Batch) Bytes(r Ref, n int) []byte {
	at := b.program.dataOffset() + r.offset
	return append([]byte(nil), b.mem[at:at+uint64(n)]...)
}

// Load32 and Store32 read and write 32 bits of the data, also while the
// program runs.
func (b *Batch) Load32(r Ref) uint32     { return atomic.LoadUint32(b.word(r)) }
func (b *Batch) Store32(r Ref, v uint32) { atomic.StoreUint32(b.word(r), v) }

func (b *Batch) word(r Ref) *uint32 {
	return (*uint32)(unsafe.Pointer(&b.mem[b.program.dataOffset()+r.offset]))
}
