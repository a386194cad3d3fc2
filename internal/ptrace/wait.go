package ptrace

import (
	"context"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stopKind says why a traced thread no longer runs.
type stopKind int

const (
	stopGone    stopKind = iota // it is dead
	stopEvent                   // PTRACE_EVENT_STOP: interrupted, or stopped with its group
	stopSyscall                 // entry or exit of a system call
	stopSignal                  // about to be given a signal
)

// stop is one thing that wait4 reported of a thread.
type stop struct {
	kind stopKind
	sig  unix.Signal // of stopSignal; of stopEvent the stop signal of its group, or SIGTRAP
}

// grouped says that the thread's group is stopped by a signal
// (kernel/signal.c, do_jobctl_trap).
func (s stop) grouped() bool { return s.kind == stopEvent && s.sig != unix.SIGTRAP }

func decodeStop(status unix.WaitStatus) stop {
	switch {
	case !status.Stopped():
		return stop{kind: stopGone}
	case uint32(status)>>16 == eventStop:
		return stop{stopEvent, status.StopSignal()}
	case status.StopSignal() == unix.SIGTRAP|0x80: // PTRACE_O_TRACESYSGOOD
		return stop{kind: stopSyscall}
	default:
		return stop{stopSignal, status.StopSignal()}
	}
}

// waitOptions: tracees of any kind, and of this very thread only. Without the
// last, a child of this program that is not traced (any more) would look like
// a tracee that has not stopped yet.
const waitOptions = unix.WALL | unix.WNOHANG | unix.WNOTHREAD

// poll reports whether the thread has stopped or died since the last report.
func poll(tid int) (stop, bool) {
	var status unix.WaitStatus
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(&status)), waitOptions, 0, 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0: // ECHILD: exec by another thread took its number, or it was reaped
			return stop{kind: stopGone}, true
		case r == 0:
			return stop{}, false
		default:
			return decodeStop(status), true
		}
	}
}

// Pauses between polls. wait4 can't be given a deadline, and a thread in
// uninterruptible sleep would hold a blocking call for ever. Most stops come
// within microseconds: for those, only the processor is yielded.
const (
	yields   = 200
	minPause = 20 * time.Microsecond
	maxPause = time.Millisecond
)

// backoff paces a loop that polls.
type backoff struct {
	rounds int
	pause  time.Duration
}

func (b *backoff) wait() {
	if b.rounds++; b.rounds <= yields {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		return
	}
	if b.pause = min(2*b.pause, maxPause); b.pause == 0 {
		b.pause = minPause
	}
	ts := unix.NsecToTimespec(int64(b.pause))
	unix.Nanosleep(&ts, nil)
}

// await waits for the thread's next stop, or the end of ctx.
func (th *Thread) await(ctx context.Context) (stop, error) {
	return th.awaitAnd(ctx, func() {})
}

// awaitAnd is await, and calls again now and then if that takes long.
func (th *Thread) awaitAnd(ctx context.Context, again func()) (stop, error) {
	var b backoff
	for {
		if s, ok := th.poll(); ok {
			return s, nil
		}
		if b.rounds%32 == 31 || b.rounds > yields {
			if err := ctx.Err(); err != nil {
				return stop{}, th.timeout(err)
			}
			th.p.look()
			if b.rounds > yields && th.seen == nil {
				if th.isRemains() {
					th.gone, th.stopped = true, false
					th.p.remains = th
					return stop{kind: stopGone}, nil
				}
				again()
			}
		}
		b.wait()
	}
}

// look takes note of what has become of the process's threads while something
// else is waited for. One of them that is in exec waits for the others to die,
// and they are not dead before their tracer has seen it (fs/exec.c, de_thread).
func (p *Process) look() {
	for _, th := range p.Threads {
		if th.gone {
			continue
		}
		// Asked for even if a stop of it has been seen: it may have been
		// killed since.
		if s, ok := poll(th.TID); ok {
			th.seen = &s
		}
	}
	p.t.strays = release(p.t.strays)
}

// isRemains says whether the thread is a leader that has exited before the
// others: wait4 does not report it before they have too (kernel/exit.c,
// delay_group_leader).
func (th *Thread) isRemains() bool {
	if th.TID != th.p.PID {
		return false
	}
	st, err := readStatus(th.TID)
	return err == nil && st.State == 'Z'
}

// rests says whether the thread is in a stop that has been looked at. After an
// exec, the one with the leader's number is another than before.
func (th *Thread) rests() bool {
	if s, ok := poll(th.TID); ok {
		th.seen = &s
		return false
	}
	var r Regs
	return getRegs(th.TID, &r) == nil
}

// poll is poll of the thread. What was seen of it before comes first.
func (th *Thread) poll() (stop, bool) {
	if th.gone {
		return stop{kind: stopGone}, true
	}
	s, ok := stop{}, th.seen != nil
	if ok {
		s, th.seen = *th.seen, nil
	} else {
		s, ok = poll(th.TID)
	}
	if ok {
		th.gone = s.kind == stopGone
		th.stopped = !th.gone
	}
	return s, ok
}

func (th *Thread) timeout(cause error) error {
	e := &TimeoutError{PID: th.p.PID, TID: th.TID, State: '?', cause: cause}
	if st, err := readStatus(th.TID); err == nil {
		e.State = st.State
	}
	return e
}

// resume lets a stopped thread go on by PTRACE_CONT or PTRACE_SYSCALL, giving
// it sig if that is not 0.
func (th *Thread) resume(req int, sig unix.Signal) error {
	if err := requestInt(req, th.TID, uintptr(sig)); err != nil {
		return th.failed("resume", err)
	}
	th.stopped = false
	return nil
}

// interrupt asks a running thread to stop, or one that is stopped to stop
// again as soon as it was resumed, before it runs any user code.
func (th *Thread) interrupt() error {
	if err := requestInt(unix.PTRACE_INTERRUPT, th.TID, 0); err != nil {
		return th.failed("interrupt", err)
	}
	return nil
}

func (th *Thread) readRegs(r *Regs) error {
	if err := getRegs(th.TID, r); err != nil {
		return th.failed("read registers of", err)
	}
	return nil
}

// failed wraps an errno of ptrace. ESRCH means that the thread is not stopped
// though it was: only SIGKILL does that.
func (th *Thread) failed(what string, err error) error {
	if err == unix.ESRCH {
		th.stopped = false
		return th.isGone()
	}
	return fmt.Errorf("%s thread %d of process %d: %w", what, th.TID, th.p.PID, err)
}

func (th *Thread) isGone() error {
	return fmt.Errorf("thread %d of process %d: %w", th.TID, th.p.PID, ErrGone)
}

// settle waits until the thread rests in an event stop. Signals that come
// first are delivered, so that none is held back; the handler has then not
// run an instruction yet.
func (th *Thread) settle(ctx context.Context) error {
	return th.settleBy(ctx, func(s stop) (unix.Signal, error) { return s.deliverable(), nil })
}

// settleBy is settle; deliver says which signal to resume the thread with.
func (th *Thread) settleBy(ctx context.Context, deliver func(stop) (unix.Signal, error)) error {
	for {
		s, err := th.awaitAnd(ctx, func() {
			// The leader's number may have gone, by exec, to a thread that
			// could not be interrupted under its old one.
			if th.TID == th.p.PID {
				_ = th.interrupt()
			}
		})
		if err != nil {
			return err
		}
		switch s.kind {
		case stopGone:
			return th.isGone()
		case stopEvent:
			th.GroupStopped = s.grouped()
			return nil
		}
		// Any stop takes back a pending interruption (kernel/signal.c,
		// ptrace_stop), so it is asked for again.
		if err := th.interrupt(); err != nil {
			return err
		}
		sig, err := deliver(s)
		if err != nil {
			return err
		}
		if err := th.resume(unix.PTRACE_CONT, sig); err != nil {
			return err
		}
	}
}
