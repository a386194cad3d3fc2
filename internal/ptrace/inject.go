package ptrace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
)

// injection is the code in a process's vDSO, and the state of the thread that
// it is going to put back.
//
// Whatever is done to the thread is ordered so that a tracer that dies between
// two steps leaves a thread that ends up whole by itself: the code is complete
// before the registers point to it, signals are blocked after that, and
// unblocked before the registers are put back.
type injection struct {
	th     *Thread
	orig   Regs   // for a thread that is stopped, kernel still to decide on a restart
	away   Regs   // for a thread that gets there by a jump
	mask   uint64 // its signal mask: during ppoll and the like, the one from before the call
	during uint64 // its mask while the code runs
	place  region

	suspended bool // its filters are
}

// enter puts the code and the state of th into its process.
func (th *Thread) enter(mapped uint64, linger time.Duration) (*injection, error) {
	if th.p.mem < 0 || th.gone || !th.stopped {
		return nil, th.isGone()
	}
	place, err := th.place()
	if err != nil {
		return nil, err
	}
	if err := th.checkDispatch(place); err != nil {
		return nil, err
	}
	filtered, err := th.filtered()
	if err != nil {
		return nil, err
	}
	if filtered && linger > 0 {
		linger = unfilteredLinger
	}
	if err := th.leaveRestartable(); err != nil {
		return nil, err
	}
	in := &injection{th: th, orig: th.regs, place: place}
	if in.mask, err = getMask(th.TID); err != nil {
		return nil, th.failed("read the signal mask of", err)
	}
	in.during = blockedDuring(in.mask)
	if in.away, err = th.resumed(in.orig); err != nil {
		return nil, err
	}
	more, err := th.readExtra()
	if err != nil {
		return nil, err
	}
	if err := th.p.writeMem(place.start, block(&in.away, &more, in.during, in.mask, mapped, linger)); err != nil {
		return nil, err
	}
	fault.Point("ptrace: code written")
	if filtered {
		if err := in.suspend(); err != nil {
			return nil, errors.Join(err, in.clear())
		}
	}
	return in, nil
}

// place returns where code may be put for the thread: nothing else is there.
func (th *Thread) place() (region, error) {
	if th.p.batch != nil && th.station == (region{}) || th.batch != nil {
		return region{}, fmt.Errorf("process %d: %w", th.p.PID, ErrBusy)
	}
	if th.station != (region{}) {
		return th.station, nil
	}
	place, err := th.p.slack()
	if errors.Is(err, errResidue) {
		if err = th.p.cleanResidue(); err == nil {
			place, err = th.p.slack()
		}
	}
	return place, err
}

// aim points the stopped thread at the code: it is going to make the given
// system call first. Signals are blocked from then on.
func (in *injection) aim(mode uint64, nr uintptr, args ...uint64) error {
	r := in.orig
	in.call(&r, mode, nr, args)
	if err := in.th.writeRegs(&r); err != nil {
		return err
	}
	// Not left to the code, since a signal could come before its first call:
	// the kernel looks for signals once more before the thread leaves its
	// stop. SETSIGMASK also keeps the kernel from putting back the mask from
	// before ppoll and the like (kernel/ptrace.c, PTRACE_SETSIGMASK).
	if err := setMask(in.th.TID, in.during); err != nil {
		return in.th.failed("block signals of", err)
	}
	fault.Point("ptrace: aimed")
	return nil
}

// leave puts a thread that rests in an event stop back where it was, and takes
// the code away.
func (in *injection) leave() error {
	if err := setMask(in.th.TID, in.mask); err != nil {
		return in.th.failed("restore the signal mask of", err)
	}
	if err := in.th.writeRegs(&in.orig); err != nil {
		return err
	}
	in.th.regs = in.orig
	fault.Point("ptrace: put back")
	return in.clear()
}

// clear takes the code out of the vDSO again. From here on the thread is held
// to its filters.
func (in *injection) clear() error {
	if err := in.enforce(); err != nil {
		return err
	}
	return in.th.p.writeMem(in.place.start, make([]byte, in.place.end-in.place.start))
}

// abandonTime bounds how long a thread may take to come out of a call that it
// was told to leave.
const abandonTime = time.Second

// single makes the thread, aimed at one system call, do it, and returns its
// result. The thread then rests in an event stop: only there does the kernel
// still consider a restart, as the thread's own interrupted call needs it.
func (in *injection) single(ctx context.Context) (uint64, error) {
	result, err := in.callOnce(ctx)
	var late *TimeoutError
	if err == nil || errors.As(err, &late) && in.th.stopped {
		if err := in.halt(context.Background()); err != nil {
			return 0, err
		}
	}
	return result, err
}

// callOnce is single, but leaves the thread at the exit of the call: from
// there it can only be sent on within the code. With a [TimeoutError], the
// call was interrupted.
func (in *injection) callOnce(ctx context.Context) (uint64, error) {
	if err := in.begin(); err != nil {
		return 0, err
	}
	if err := in.toEntry(ctx); err != nil {
		return 0, err
	}
	return in.toExit(ctx)
}

// begin, toEntry and toExit are the parts of callOnce. Between them nothing need
// be done for the thread to get on, so that others can be seen to meanwhile.
func (in *injection) begin() error { return in.th.resume(unix.PTRACE_SYSCALL, 0) }

func (in *injection) toEntry(ctx context.Context) error {
	if err := in.toSyscallStop(ctx, unix.PTRACE_SYSCALL); err != nil {
		return err
	}
	return in.th.resume(unix.PTRACE_SYSCALL, 0)
}

func (in *injection) toExit(ctx context.Context) (uint64, error) {
	th := in.th
	err := in.toSyscallStop(ctx, unix.PTRACE_SYSCALL)
	var late *TimeoutError
	if errors.As(err, &late) {
		if err := th.interrupt(); err != nil {
			return 0, err
		}
		grace, cancel := context.WithTimeout(context.Background(), abandonTime)
		defer cancel()
		if err := in.toSyscallStop(grace, unix.PTRACE_SYSCALL); err != nil {
			return 0, err
		}
		return 0, late
	}
	if err != nil {
		return 0, err
	}
	var r Regs
	if err := th.readRegs(&r); err != nil {
		return 0, err
	}
	return resultOf(&r), nil
}

// toSyscallStop waits for the next entry or exit of a system call. SIGSTOP,
// SIGCONT and their kind come between.
func (in *injection) toSyscallStop(ctx context.Context, req int) error {
	for {
		s, err := in.th.await(ctx)
		if err != nil {
			return err
		}
		switch s.kind {
		case stopGone:
			return in.th.isGone()
		case stopSyscall:
			return nil
		}
		sig, err := in.pass(s)
		if err != nil {
			return err
		}
		if err := in.th.resume(req, sig); err != nil {
			return err
		}
	}
}

// Syscall makes the thread do one system call, and returns its result. An
// errno is returned as it is, for errors.Is; other errors are the tracer's.
// For more than a few calls, a [Program] costs less.
func (th *Thread) Syscall(ctx context.Context, nr uintptr, args ...uint64) (result uint64, err error) {
	err = th.p.t.Do(func() error {
		in, err := th.enter(0, 0)
		if err != nil {
			return err
		}
		if err := in.aim(modeSingle, nr, args...); err != nil {
			return err
		}
		r, err := in.single(ctx)
		if undo := in.leaveAfter(err); undo != nil {
			return undo
		}
		if err != nil {
			return err
		}
		result, err = r, errnoOf(r)
		return err
	})
	return result, err
}

// leaveAfter is leave, unless err says that there is nobody to put back.
func (in *injection) leaveAfter(err error) error {
	if errors.Is(err, ErrGone) {
		return nil
	}
	if errors.Is(err, ErrAbandoned) { // it is in a stop for a signal
		ctx, cancel := context.WithTimeout(context.Background(), abandonTime)
		defer cancel()
		if err := in.halt(ctx); err != nil {
			return err
		}
	}
	if !in.th.stopped {
		return nil
	}
	return in.leave()
}

// errnoOf returns the error in a result of a system call, as a unix.Errno.
func errnoOf(r uint64) error {
	n := int64(r)
	switch {
	case n >= 0 || n < -4095:
		return nil
	case n <= -512: // the kernel's own, of a call that was interrupted
		return unix.EINTR
	}
	return unix.Errno(-n)
}
