package swap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spfs/internal/ptrace"
)

// stopped is the processes that are stopped.
type stopped struct {
	tracer    *ptrace.Tracer
	since     time.Time // when the first was
	processes map[int]*ptrace.Process
}

// close lets all go.
func (s *stopped) close() {
	// A process that could not be let go is let go with the tracer's thread.
	_ = s.releaseAll()
	s.tracer.Close()
}

func (s *stopped) release(pid int) error {
	p := s.processes[pid]
	if p == nil {
		return nil
	}
	delete(s.processes, pid)
	return p.Release()
}

func (s *stopped) releaseAll() error {
	var errs []error
	for pid := range s.processes {
		errs = append(errs, s.release(pid))
	}
	return errors.Join(errs...)
}

// seize stops those of users that aren't yet. It reports whether there were
// any, or any of them exited: then the plan must look again.
func (s *stopped) seize(ctx context.Context, users []*Process) (bool, error) {
	var pids []int
	for _, p := range users {
		if s.processes[p.PID] == nil {
			pids = append(pids, p.PID)
		}
	}
	if len(pids) == 0 {
		return false, nil
	}
	if s.since.IsZero() {
		s.since = time.Now()
	}
	all, err := s.tracer.SeizeAll(ctx, pids)
	if errors.Is(err, ptrace.ErrGone) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("stopping: %w", err)
	}
	for _, p := range all {
		s.processes[p.PID] = p
	}
	return true, nil
}

// stop stops everyone who uses the old mount, flushes it, and brings the plan
// up to date, until neither a new user nor a new file to flush shows up.
func (r *run) stop(ctx context.Context) error {
	// Once while everyone runs, so that little is left to do later.
	if err := flushAll(ctx, r.plan.Usage); err != nil {
		return err
	}
	r.stopped = &stopped{tracer: ptrace.New(), processes: map[int]*ptrace.Process{}}
	f := &flusher{done: map[FDRef]uint64{}}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopping: new users of the mount keep appearing: %w", err)
		}
		more, err := r.stopped.seize(ctx, r.plan.Usage.Processes)
		if err != nil {
			return err
		}
		pending := f.pending(r.plan.Usage)
		if !more && len(pending) == 0 {
			return nil
		}
		if err := f.flush(ctx, r.plan.Usage, pending); err != nil {
			return err
		}
		if err := r.plan.Refresh(ctx); err != nil {
			// It is no refusal any more: they have been stopped.
			var late *RefusedError
			if errors.As(err, &late) {
				return late
			}
			return err
		}
	}
}

// flushAll flushes everything of u.
func flushAll(ctx context.Context, u *Usage) error {
	f := &flusher{done: map[FDRef]uint64{}}
	return f.flush(ctx, u, f.pending(u))
}
