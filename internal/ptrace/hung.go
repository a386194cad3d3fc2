package ptrace

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hangTime is how long a thread must be seen in uninterruptible sleep before it
// is taken to hang there.
const hangTime = 10 * time.Millisecond

// Catch is [Tracer.SeizeAll] for processes of which threads may hang in the
// kernel: those are not waited for. They do not come to run a program's own
// code any more, for they stop on their way there; but nothing can be done with
// their processes until [Process.Rest].
func (t *Tracer) Catch(ctx context.Context, pids []int) ([]*Process, error) {
	var ps []*Process
	err := t.Do(func() (err error) {
		ps, err = t.seizeAll(ctx, pids, func() error { return nil }, (*Process).catchAll)
		return err
	})
	return ps, err
}

// catchAll is stopAll, but leaves those threads that hang.
func (p *Process) catchAll(ctx context.Context, buf []byte) error {
	var pace backoff
	since := map[int]time.Time{} // when a thread was first seen to hang
	for {
		left := false
		for _, th := range p.Threads {
			over, err := th.stopsOrHangs(ctx, since)
			if err != nil && !errors.Is(err, ErrGone) {
				return err
			}
			left = left || !over
		}
		p.prune()
		c, err := p.attach(ctx, buf)
		switch {
		case err != nil:
			return err
		case c.added > 0:
			continue
		case c.exact && len(p.Threads) == 0 && c.listed <= 1:
			return p.isGone()
		case c.exact && len(p.Threads) > 0 && !left:
			return nil
		}
		if err := ctx.Err(); err != nil {
			return &TimeoutError{PID: p.PID, TID: p.PID, State: '?', cause: err}
		}
		pace.wait()
	}
}

// stopsOrHangs says whether the thread has come to rest, or hangs.
func (th *Thread) stopsOrHangs(ctx context.Context, since map[int]time.Time) (bool, error) {
	if th.settled || th.gone {
		return true, nil
	}
	s, ok := th.poll()
	if ok {
		th.seen = &s
		return true, th.comeToRest(ctx) // which finds what was seen
	}
	st, err := readStatus(th.TID)
	if err != nil || st.State != 'D' {
		delete(since, th.TID)
		return false, nil // what became of it is seen next
	}
	if since[th.TID].IsZero() {
		since[th.TID] = time.Now()
	}
	return time.Since(since[th.TID]) >= hangTime, nil
}

// Rest waits until every thread of a process that was caught has stopped. Those
// that did not stop by themselves are [Thread.Hung]. Should one of them have
// been in a page fault that has failed, the signal for that is dropped: the
// thread makes the access again.
func (p *Process) Rest(ctx context.Context) error {
	return p.t.Do(func() error {
		for _, th := range p.Threads {
			if th.settled || th.gone {
				continue
			}
			th.hung = true
			err := th.settleBy(ctx, func(s stop) (unix.Signal, error) {
				if lost, err := th.faulted(s); lost || err != nil {
					return 0, err
				}
				return s.deliverable(), nil
			})
			if err == nil {
				err = th.dropFault(ctx)
			}
			if err == nil {
				err = th.stoppedAgain()
			}
			if err != nil && !errors.Is(err, ErrGone) {
				return err
			}
			th.settled = err == nil
		}
		p.prune()
		if err := p.t.timer.start(p.t.tid); err != nil {
			return err
		}
		defer p.t.timer.stop()
		return p.stopAll(ctx, make([]byte, 4096))
	})
}

// hangs says whether a thread of the process has not stopped since it was
// caught.
func (p *Process) hangs() bool {
	for _, th := range p.Threads {
		if !th.settled && !th.gone {
			return true
		}
	}
	return false
}

// Hung says whether the thread hung in the kernel when it was caught.
func (th *Thread) Hung() bool { return th.hung }

// siginfo is the beginning of siginfo_t.
type siginfo struct {
	signo, errno, code int32
	_                  [116]byte
}

// missing says whether a signal is what the kernel sends for a page that can't
// be had (arch/x86/mm/fault.c, do_sigbus; include/uapi/asm-generic/siginfo.h).
func (i *siginfo) missing() bool {
	const busAdrerr = 2
	return unix.Signal(i.signo) == unix.SIGBUS && i.code == busAdrerr
}

// faulted says whether the thread has stopped for such a signal.
func (th *Thread) faulted(s stop) (bool, error) {
	if s.kind != stopSignal || s.sig != unix.SIGBUS {
		return false, nil
	}
	var info siginfo
	if err := request(unix.PTRACE_GETSIGINFO, th.TID, 0, unsafe.Pointer(&info)); err != nil {
		return false, th.failed("read the signal of", err)
	}
	return info.missing(), nil
}

// dropFault takes such a signal away from a thread in an event stop. The kernel
// looks at an interruption first, and at signals after that (kernel/signal.c,
// get_signal): so the thread is let go without one, up to the signal.
func (th *Thread) dropFault(ctx context.Context) error {
	const peekSiginfo, most = 0x4209, 16
	args := struct { // struct ptrace_peeksiginfo_args
		off   uint64
		flags uint32 // 0: the thread's own queue, where faults are
		nr    int32
	}{nr: most}
	var infos [most]siginfo
	n, _, e := unix.RawSyscall6(unix.SYS_PTRACE, peekSiginfo, uintptr(th.TID),
		uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&infos[0])), 0, 0)
	if e != 0 {
		return th.failed("read the signals of", e)
	}
	there := false
	for i := range min(int(n), most) {
		there = there || infos[i].missing()
	}
	if !there {
		return nil
	}
	if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
		return err
	}
	for {
		s, err := th.await(ctx)
		if err != nil {
			return err
		}
		if s.kind == stopGone {
			return th.isGone()
		}
		lost, err := th.faulted(s)
		if err != nil {
			return err
		}
		if !lost { // another signal was first: what is delivered now runs no code yet
			if err := th.resume(unix.PTRACE_CONT, s.deliverable()); err != nil {
				return err
			}
			continue
		}
		if err := th.interrupt(); err != nil {
			return err
		}
		if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
			return err
		}
		return th.settle(ctx)
	}
}

// CallAgain makes the thread make the system call that it is in once more when
// it is let go, whatever came of it.
func (th *Thread) CallAgain() error {
	return th.answer(func(r *Regs) { callAgain(r) })
}

// Answer makes the system call that the thread is in return result.
func (th *Thread) Answer(result int64) error {
	return th.answer(func(r *Regs) { setResult(r, result) })
}

func (th *Thread) answer(change func(*Regs)) error {
	return th.p.t.Do(func() error {
		if _, ok := interrupted(&th.regs); !ok {
			return fmt.Errorf("thread %d of process %d: it is in no system call", th.TID, th.p.PID)
		}
		r := th.regs
		change(&r)
		if err := th.writeRegs(&r); err != nil {
			return err
		}
		th.regs = r
		return nil
	})
}

// CallOf returns what the system call that the thread is in was made with, and
// its result. It is false if it is in none, or in one of another ABI.
func (th *Thread) CallOf() (nr int, args [6]uint64, result int64, ok bool, err error) {
	err = th.p.t.Do(func() error {
		if nr, ok = interrupted(&th.regs); !ok {
			return nil
		}
		other, err := th.calledOtherwise()
		if err != nil || other {
			ok = false
			return err
		}
		args, result = callOf(&th.regs)
		return nil
	})
	return nr, args, result, ok, err
}
