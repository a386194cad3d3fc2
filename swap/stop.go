package swap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"spfs/internal/fault"
	"spfs/internal/ptrace"
)

// stopped is the processes that are stopped, divided among as many tracers as
// there are processors: a process can be traced by one thread only.
type stopped struct {
	tracers []*ptrace.Tracer
	since   time.Time // when the first process was stopped

	mu        sync.Mutex
	processes map[int]*ptrace.Process
	tracerOf  map[int]int // by pid: an index of tracers
	trace     *Trace
	optional  map[int]bool      // those that need not be stopped
	began     map[int]time.Time // when each was asked to stop
}

func newStopped() *stopped {
	s := &stopped{processes: map[int]*ptrace.Process{}, tracerOf: map[int]int{}, began: map[int]time.Time{}}
	for range runtime.GOMAXPROCS(0) {
		s.tracers = append(s.tracers, ptrace.New())
	}
	return s
}

// duration is how long somebody has been stopped.
func (s *stopped) duration() time.Duration {
	if s.since.IsZero() {
		return 0 // nobody uses the mount
	}
	return time.Since(s.since)
}

// close lets all go.
func (s *stopped) close() {
	// A process that could not be let go is let go with the tracer's thread.
	_ = s.releaseAll()
	for _, t := range s.tracers {
		t.Close()
	}
}

func (s *stopped) pids() map[int]bool {
	all := make(map[int]bool, len(s.processes))
	for pid := range s.processes {
		all[pid] = true
	}
	return all
}

func (s *stopped) process(pid int) *ptrace.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[pid]
}

// died says whether one of them has been killed, which a stop does not hinder.
func (s *stopped) died() bool {
	for pid, p := range s.processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, p.Leader().TID))
		if err != nil {
			return true
		}
		if stat, err := parseStat(text); err != nil || stat.gone() {
			return true
		}
	}
	return false
}

func (s *stopped) release(pid int) error {
	s.mu.Lock()
	p := s.processes[pid]
	delete(s.processes, pid)
	began := s.began[pid]
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	defer s.trace.add(pid, "stopped", began)
	return unlessGone(p.Release())
}

func (s *stopped) releaseAll() error {
	var errs []error
	for pid := range maps.Clone(s.processes) {
		errs = append(errs, s.release(pid))
	}
	return errors.Join(errs...)
}

// seize stops those of users that aren't yet. It reports whether there were
// any, or any of them exited: then the plan must look again.
func (s *stopped) seize(ctx context.Context, users []*Process) (bool, error) {
	return s.stopBy(ctx, users, (*ptrace.Tracer).SeizeAll)
}

func (s *stopped) stopBy(ctx context.Context, users []*Process, seize func(*ptrace.Tracer, context.Context, []int) ([]*ptrace.Process, error)) (bool, error) {
	shares := make([][]int, len(s.tracers))
	n := 0
	for _, p := range users {
		if s.processes[p.PID] == nil {
			shares[n%len(shares)] = append(shares[n%len(shares)], p.PID)
			n++
		}
	}
	if n == 0 {
		return false, nil
	}
	if s.since.IsZero() {
		s.since = time.Now()
	}
	var g errgroup.Group
	for i, pids := range shares {
		if len(pids) == 0 {
			continue
		}
		g.Go(func() error {
			began := time.Now()
			all, err := seize(s.tracers[i], ctx, pids)
			if errors.Is(err, ptrace.ErrGone) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("stopping: %w", err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, p := range all {
				s.processes[p.PID], s.tracerOf[p.PID] = p, i
				s.began[p.PID] = began
				s.trace.add(p.PID, "stop", began)
			}
			return nil
		})
	}
	return true, g.Wait()
}

// stop stops everyone who uses the old mount, flushes it, and brings the plan
// up to date, until neither a new user nor a new file to flush shows up.
func (r *run) stop(ctx context.Context) error {
	r.phase("looking who uses the mount")
	if err := r.plan.learn(ctx); err != nil {
		return err
	}
	r.phase("flushing")
	// Once while everyone runs, so that little is left to do later.
	if err := flushAll(ctx, r.plan); err != nil {
		return err
	}
	warm(ctx, r.plan.Usage)
	setEarlyPositions(r.plan.Usage)
	r.ahead.close()
	r.ahead = writeAhead(r.plan, r.verdict)
	r.held.close()
	r.held = hold(r.plan)
	// What the plan has thrown away is memory that is there: what is new has to
	// be faulted in, page by page, and that takes longer than all the rest.
	runtime.GC()
	r.stopped = newStopped()
	r.stopped.trace = r.options.Trace
	if r.plan.abort {
		if err := r.stopHung(ctx); err != nil {
			return err
		}
	}
	f := &flusher{plan: r.plan, done: map[FDRef]uint64{}}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopping: new users of the mount keep appearing: %w", err)
		}
		r.phase("stopping " + number(len(r.plan.Usage.Processes), "process", "processes"))
		r.options.Trace.name(r.plan.Usage)
		more, err := r.stopped.seize(ctx, r.plan.Usage.Processes)
		if err != nil {
			return err
		}
		pending := f.pending(r.plan.Usage)
		if !more && len(pending) == 0 {
			return nil
		}
		fault.Point("users stopped")
		r.plan.Stopped = r.stopped.pids()
		if clean, err := r.clean(ctx); err != nil {
			return tooLate(err)
		} else if clean {
			f.skip(pending)
			fault.Point("flushed")
			continue
		}
		r.phase("flushing what was written last")
		if err := f.flush(ctx, r.plan.Usage, pending); err != nil {
			return err
		}
		fault.Point("flushed")
		r.phase("looking again")
		if err := r.plan.Refresh(ctx); err != nil {
			return tooLate(err)
		}
	}
}

// clean says that there is nothing to flush, and that the plan is up to date, if a
// look at the kernel's tables can tell that.
func (r *run) clean(ctx context.Context) (bool, error) {
	k := r.plan.known
	if k.steady == nil || !k.steady.look.onlyPages() {
		return false, nil
	}
	r.phase("looking again")
	now := r.plan.lookSame(ctx)
	if now == nil {
		k.steady = nil // whoever looks next need not look for that again
		return false, nil
	}
	if !now.onlyPages() || now.unwritten() {
		return false, nil
	}
	return r.plan.takeSame(ctx, now)
}

// tooLate makes a refusal an error like others: processes have been stopped.
func tooLate(err error) error {
	var late *RefusedError
	if errors.As(err, &late) {
		return late
	}
	return err
}

// flushAll flushes everything of a plan.
func flushAll(ctx context.Context, p *Plan) error {
	f := &flusher{plan: p, done: map[FDRef]uint64{}}
	return f.flush(ctx, p.Usage, f.pending(p.Usage))
}
