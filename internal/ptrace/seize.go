package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
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
	var ps []*Process
	err := t.Do(func() (err error) {
		ps, err = t.seizeAll(ctx, pids)
		return err
	})
	return ps, err
}

func (t *Tracer) seizeAll(ctx context.Context, pids []int) (ps []*Process, err error) {
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
	buf := make([]byte, 4096)
	for _, pid := range pids {
		p, err := t.open(pid)
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
		if _, err := p.attach(buf); err != nil {
			return ps, err
		}
	}
	for _, p := range ps {
		if err := p.stopAll(ctx, buf); err != nil {
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
	fail := func(what string, err error) (*Process, error) {
		if p.tasks >= 0 {
			unix.Close(p.tasks)
		}
		if err == unix.ENOENT || err == unix.ESRCH {
			return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
		}
		return nil, fmt.Errorf("open %s of process %d: %w", what, pid, err)
	}
	var err error
	if p.tasks, err = unix.Open(fmt.Sprintf("/proc/%d/task", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fail("task list", err)
	}
	if p.mem, err = unix.Open(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		// Kernel threads and zombies have no memory to open.
		if why := refusal(pid, pid, nil); why != nil {
			unix.Close(p.tasks)
			return nil, why
		}
		return fail("memory", err)
	}
	return p, nil
}

// attach seizes and interrupts the threads that are not yet, and returns how
// many those were.
func (p *Process) attach(buf []byte) (int, error) {
	tids, err := p.listTasks(buf)
	if err == unix.ENOENT || err == unix.ESRCH {
		return 0, fmt.Errorf("process %d: %w", p.PID, ErrGone)
	}
	if err != nil {
		return 0, fmt.Errorf("list threads of process %d: %w", p.PID, err)
	}
	known := make(map[int]bool, len(p.Threads))
	for _, th := range p.Threads {
		known[th.TID] = true
	}
	n := 0
	for _, tid := range tids {
		if known[tid] {
			continue
		}
		err := requestInt(unix.PTRACE_SEIZE, tid, unix.PTRACE_O_TRACESYSGOOD)
		if err == unix.ESRCH {
			continue // exited since it was listed
		}
		if err != nil {
			if err = refusal(p.PID, tid, err); err != nil {
				return n, err
			}
			continue
		}
		th := &Thread{TID: tid, p: p}
		p.Threads = append(p.Threads, th)
		n++
		if err := th.interrupt(); err != nil && !errors.Is(err, ErrGone) {
			return n, err
		}
	}
	return n, nil
}

// refusal says why a task can't be seized. Nil means that it is dead (a leader
// whose other threads live on, for one) and need not be.
func refusal(pid, tid int, cause error) error {
	st, err := readStatus(tid)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		return fmt.Errorf("seize thread %d of process %d: %w", tid, pid, errors.Join(cause, err))
	case st.State == 'Z' || st.State == 'X':
		return nil
	case st.TracerPID != 0:
		return &TracedError{PID: tid, Tracer: st.TracerPID}
	case st.KernelThread:
		return fmt.Errorf("process %d: %w", pid, ErrKernelThread)
	case cause == nil:
		return nil
	}
	return fmt.Errorf("seize thread %d of process %d: %w", tid, pid, cause)
}

// stopAll waits for all seized threads and seizes those that were created
// meanwhile, until there are no more.
func (p *Process) stopAll(ctx context.Context, buf []byte) error {
	settled := 0
	for {
		for _, th := range p.Threads[settled:] {
			err := th.settle(ctx)
			if err == nil {
				err = th.stoppedAgain()
			}
			if err != nil && !errors.Is(err, ErrGone) {
				return err
			}
		}
		p.prune()
		settled = len(p.Threads)
		switch n, err := p.attach(buf); {
		case err != nil:
			return err
		case n == 0 && len(p.Threads) == 0:
			return fmt.Errorf("process %d: %w", p.PID, ErrGone)
		case n == 0:
			return nil
		}
	}
}

// prune drops threads that died.
func (p *Process) prune() {
	alive := p.Threads[:0]
	for _, th := range p.Threads {
		if !th.gone {
			alive = append(alive, th)
		}
	}
	p.Threads = alive
}

// stoppedAgain takes note of the state of a thread that came to rest.
func (th *Thread) stoppedAgain() error {
	th.aborted = false
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
