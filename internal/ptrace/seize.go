package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
)

// Seize stops every thread of a process. When ctx ends before all have
// stopped, the error is a [TimeoutError]. Others wrap [ErrGone],
// [ErrKernelThread], [ErrArch] or are a [TracedError]. On any error the
// process runs on as if it had not been touched.
func (t *Tracer) Seize(ctx context.Context, pid int) (*Process, error) {
	ps, err := t.SeizeAll(ctx, []int{pid})
	if err != nil {
		return nil, err
	}
	return ps[0], nil
}

// SeizeAll is [Tracer.Seize] for many processes: all are interrupted before
// the first is waited for. Either all are seized, or none.
func (t *Tracer) SeizeAll(ctx context.Context, pids []int) ([]*Process, error) {
	return t.SeizeFrozen(ctx, pids, func() error { return nil })
}

// SeizeFrozen is [Tracer.SeizeAll] for processes that rest in a frozen cgroup.
// thaw is called when every thread has been told to stop, before the first is
// waited for: none runs on in between, since a thread looks for such stops
// before it leaves the kernel (kernel/signal.c, get_signal). It runs on the
// tracer's thread. If it fails, so does SeizeFrozen.
func (t *Tracer) SeizeFrozen(ctx context.Context, pids []int, thaw func() error) ([]*Process, error) {
	var ps []*Process
	err := t.Do(func() (err error) {
		ps, err = t.seizeAll(ctx, pids, thaw, (*Process).stopAll)
		return err
	})
	return ps, err
}

// seizeAll is SeizeFrozen; wait waits for the threads of one process.
func (t *Tracer) seizeAll(ctx context.Context, pids []int, thaw func() error, wait func(*Process, context.Context, []byte) error) (ps []*Process, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, p := range ps {
			if undo := p.detach(undoTime); undo != nil {
				err = errors.Join(err, undo)
			}
		}
		ps = nil
	}()
	if err := Supported(); err != nil {
		return nil, err
	}
	if err := t.timer.start(t.tid); err != nil {
		return nil, err
	}
	defer t.timer.stop()
	buf := make([]byte, 4096)
	for _, pid := range pids {
		p, err := t.open(pid)
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
		if _, err := p.attach(ctx, buf); err != nil {
			return ps, err
		}
		fault.Point("ptrace: seized")
	}
	if err := thaw(); err != nil {
		return ps, err
	}
	for _, p := range ps {
		if err := wait(p, ctx, buf); err != nil {
			return ps, err
		}
	}
	return ps, nil
}

// undoTime bounds how long an unsuccessful Seize waits for threads to stop, so
// that it can let go of them. The tracer takes care of the others later.
const undoTime = 20 * time.Millisecond

func (t *Tracer) open(pid int) (*Process, error) {
	p := &Process{PID: pid, t: t, mem: -1, tasks: -1}
	if err := p.openTasks(); err != nil {
		return nil, err
	}
	return p, nil
}

// openTasks opens the list of the process's threads.
func (p *Process) openTasks() error {
	name := fmt.Sprintf("/proc/%d/task", p.PID)
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			if p.tasks >= 0 {
				unix.Close(p.tasks)
			}
			p.tasks = fd
			return nil
		case err != unix.ENOENT && err != unix.ESRCH:
			return fmt.Errorf("open the threads of process %d: %w", p.PID, err)
		case !p.misled():
			return p.isGone()
		}
	}
}

// misled says whether /proc has called a process gone that is not. A look-up
// while a thread takes the leader's number by exec may end at what was the
// thread's own number, which ceases to exist (fs/proc/base.c,
// proc_pid_make_inode: get_task_pid of the old leader).
func (p *Process) misled() bool {
	p.denied++
	return p.denied < mostDenied && unix.Kill(p.PID, 0) != unix.ESRCH
}

func (p *Process) isGone() error { return fmt.Errorf("process %d: %w", p.PID, ErrGone) }

// census is what one look at the threads of a process gave.
type census struct {
	added  int  // seized and interrupted now
	listed int  // threads there are
	exact  bool // every thread was listed, and none was about to vanish
}

// attach seizes and interrupts the threads that are not yet.
func (p *Process) attach(ctx context.Context, buf []byte) (c census, err error) {
	tids, err := p.listTasks(buf)
	if (err == nil && len(tids) == 0 || err == unix.ENOENT || err == unix.ESRCH) && p.misled() {
		return c, p.openTasks()
	}
	if err == unix.ENOENT || err == unix.ESRCH {
		return c, p.isGone()
	}
	if err != nil {
		return c, fmt.Errorf("list threads of process %d: %w", p.PID, err)
	}
	// A thread that dies while the list is read makes the kernel leave others
	// out (fs/proc/base.c, next_tid).
	n, err := p.countTasks()
	if err != nil {
		return c, fmt.Errorf("count threads of process %d: %w", p.PID, err)
	}
	c.exact, c.listed = n == len(tids), n
	listed, known := make(map[int]bool, len(tids)), make(map[int]bool, len(p.Threads))
	for _, th := range p.Threads {
		known[th.TID] = true
	}
	for _, tid := range tids {
		// A thread that execs while the list is read is in it twice, or
		// under the leader's number only, as the leader is.
		if listed[tid] {
			c.exact = false
			continue
		}
		listed[tid] = true
		if known[tid] {
			continue
		}
		th := p.t.takeStray(tid)
		if th == nil {
			switch dead, err := p.seize(ctx, tid); {
			case err == unix.ESRCH:
				c.exact = false
				continue
			case err != nil:
				return c, err
			case dead:
				continue
			}
			th = &Thread{TID: tid}
		}
		th.p, th.settled = p, false
		p.Threads = append(p.Threads, th)
		c.added++
		if err := th.interrupt(); err != nil && !errors.Is(err, ErrGone) {
			return c, err
		}
	}
	return c, nil
}

// seize is PTRACE_SEIZE. A zombie is no error, a thread that is gone is ESRCH.
func (p *Process) seize(ctx context.Context, tid int) (dead bool, err error) {
	cause := requestInt(unix.PTRACE_SEIZE, tid, unix.PTRACE_O_TRACESYSGOOD)
	for ; cause == unix.EINTR; cause = requestInt(unix.PTRACE_SEIZE, tid, unix.PTRACE_O_TRACESYSGOOD) {
		// The process is in exec, and that may wait for us.
		p.look()
		if err := ctx.Err(); err != nil {
			return false, (&Thread{TID: tid, p: p}).timeout(err)
		}
	}
	if cause == nil || cause == unix.ESRCH {
		return false, cause
	}
	st, err := readStatus(tid)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH):
		return false, unix.ESRCH
	case err != nil:
		err = errors.Join(cause, err)
	case st.State == 'Z':
		return true, nil
	case st.State == 'X':
		return false, unix.ESRCH
	case st.TracerPID == p.t.tid && tid == p.PID && p.hasLost():
		// Ours under another number: exec gave it its process's.
		p.remains = nil
		return false, nil
	case st.TracerPID != 0:
		return false, &TracedError{PID: tid, Tracer: st.TracerPID}
	case st.KernelThread:
		return false, fmt.Errorf("process %d: %w", p.PID, ErrKernelThread)
	case p.denied < mostDenied:
		// What kept it from being seized is over: it was within exec, or a
		// leader that exec has replaced by another thread.
		p.denied++
		return false, unix.ESRCH
	default:
		err = cause
	}
	return false, fmt.Errorf("seize thread %d of process %d: %w", tid, p.PID, err)
}

// hasLost says whether a thread is gone that had been seized.
func (p *Process) hasLost() bool {
	p.look()
	for _, th := range p.Threads {
		if th.gone || th.seen != nil && th.seen.kind == stopGone {
			return true
		}
	}
	return p.lost
}

// mostDenied is how often a refusal without a reason, or an end of a process
// that has not ended, is taken for a passing one.
const mostDenied = 20

// stopAll waits for all seized threads and seizes those that were created
// meanwhile, until there are no more.
func (p *Process) stopAll(ctx context.Context, buf []byte) error {
	var pace backoff
	for {
		for _, th := range p.Threads {
			if err := th.comeToRest(ctx); err != nil && !errors.Is(err, ErrGone) {
				return err
			}
		}
		p.prune()
		c, err := p.attach(ctx, buf)
		switch {
		case err != nil:
			return err
		case c.added > 0:
		case c.exact && len(p.Threads) > 0 && p.atRest():
			return p.openMemory()
		case c.exact && len(p.Threads) == 0 && c.listed <= 1:
			return p.isGone()
		default:
			if err := ctx.Err(); err != nil {
				return &TimeoutError{PID: p.PID, TID: p.PID, State: '?', cause: err}
			}
			pace.wait()
		}
	}
}

// comeToRest waits for the stop of a thread that was interrupted. If it was
// killed in the stop, its end is still to be waited for.
func (th *Thread) comeToRest(ctx context.Context) error {
	if th.settled {
		return nil
	}
	if err := th.settle(ctx); err != nil {
		return err
	}
	if err := th.stoppedAgain(); err != nil {
		return err
	}
	th.settled = true
	return nil
}

// atRest says whether every thread is still where it came to rest. A thread
// that execs kills the others in their stops, and takes the leader's number,
// without having been seized itself perhaps (fs/exec.c, de_thread). Those that
// are not at rest are interrupted.
func (p *Process) atRest() bool {
	all := true
	for _, th := range p.Threads {
		if th.settled && th.rests() {
			continue
		}
		all, th.settled = false, false
		if th.seen == nil {
			// Fails if it is dead, which is seen next.
			_ = th.interrupt()
		}
	}
	return all
}

// openMemory opens the memory that the process has now that it has stopped.
func (p *Process) openMemory() (err error) {
	p.mem, err = unix.Open(p.proc("mem"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ESRCH {
		return p.isGone()
	}
	if err != nil {
		return fmt.Errorf("open the memory of process %d: %w", p.PID, err)
	}
	return nil
}

// prune drops threads that died.
func (p *Process) prune() {
	alive := p.Threads[:0]
	for _, th := range p.Threads {
		if th.gone {
			p.lost = true
		} else {
			alive = append(alive, th)
		}
	}
	p.Threads = alive
}

// stoppedAgain takes note of the state of a thread that came to rest.
func (th *Thread) stoppedAgain() error {
	if err := th.readRegs(&th.regs); err != nil {
		return err
	}
	if !supported(&th.regs) {
		return fmt.Errorf("thread %d of process %d: %w", th.TID, th.p.PID, ErrArch)
	}
	changed, err := th.unspoil(&th.regs)
	if err != nil || !changed {
		return err
	}
	return th.writeRegs(&th.regs)
}
