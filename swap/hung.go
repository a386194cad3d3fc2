package swap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"spfs/internal/fusectl"
	"spfs/internal/ptrace"
)

// stopHung stops everyone who uses the old mount, some of whom hang in it, and
// ends its connection. What they hang in then fails, and nobody sees it: the
// tasks stop on their way out of the kernel, and what they were about is done
// again when they are let go.
//
// Everyone who is known is caught before the end, whoever is not may see it. So
// all that can be in the way is looked for before, too: afterwards there is no
// mount to go back to.
func (r *run) stopHung(ctx context.Context) error {
	connection, err := fusectl.Open(r.plan.From.Mount.Dev)
	if err != nil {
		return fmt.Errorf("--abort: %w", err)
	}
	defer connection.Close()
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopping: new users of the mount keep appearing: %w", err)
		}
		more, err := r.stopped.catch(ctx, r.plan.Usage.Processes)
		if err != nil {
			return err
		}
		further, err := r.catchBystanders(ctx)
		if err != nil {
			return err
		}
		if !more && !further {
			break
		}
		r.phase("looking again")
		if err := r.plan.Refresh(ctx); err != nil && (!errors.As(err, new(*RefusedError)) || r.plan.inTheWay()) {
			return tooLate(err)
		}
	}
	r.phase("ending the old connection")
	if err := connection.Abort(); err != nil {
		return fmt.Errorf("--abort: %w", err)
	}
	r.aborted = true
	if err := r.stopped.rest(ctx); err != nil {
		return err
	}
	for _, p := range r.stopped.processes {
		for _, th := range p.Threads {
			if err := redo(th); err != nil {
				return err
			}
		}
	}
	r.plan.Stopped = r.stopped.pids()
	r.phase("looking again")
	return tooLate(r.plan.Refresh(ctx))
}

// inTheWay says whether something is that does not go away with the requests
// that hang.
func (p *Plan) inTheWay() bool {
	for _, o := range p.Obstacles {
		if !(o.hung && p.abort) {
			return true
		}
	}
	return false
}

// catch stops those of users that aren't yet, but for threads that hang. It
// reports whether there were any.
func (s *stopped) catch(ctx context.Context, users []*Process) (bool, error) {
	return s.stopBy(ctx, users, (*ptrace.Tracer).Catch)
}

// catchBystanders is catch for those who only hang in the mount. Who can't be
// stopped is left to itself.
func (r *run) catchBystanders(ctx context.Context) (more bool, err error) {
	for _, p := range r.plan.bystanders(r.stopped.pids()) {
		caught, err := r.stopped.catch(ctx, []*Process{p})
		if err != nil && ctx.Err() != nil {
			return false, err
		}
		if err == nil && caught && r.stopped.process(p.PID) != nil {
			more = true
			if r.stopped.optional == nil {
				r.stopped.optional = map[int]bool{}
			}
			r.stopped.optional[p.PID] = true
		}
	}
	return more, nil
}

// rest waits for all threads of those that were caught.
func (s *stopped) rest(ctx context.Context) error {
	shares := make([][]*ptrace.Process, len(s.tracers))
	for pid, p := range s.processes {
		shares[s.tracerOf[pid]] = append(shares[s.tracerOf[pid]], p)
	}
	gone := make([][]int, len(shares))
	var g errgroup.Group
	for i, share := range shares {
		g.Go(func() error {
			for _, p := range share {
				err := s.restOne(ctx, p)
				if errors.Is(err, ptrace.ErrGone) || err != nil && s.optional[p.PID] {
					gone[i] = append(gone[i], p.PID)
					continue
				}
				if err != nil {
					return fmt.Errorf("stopping what hung: %w", err)
				}
			}
			return nil
		})
	}
	err := g.Wait()
	for _, pids := range gone {
		for _, pid := range pids {
			err = errors.Join(err, s.release(pid))
		}
	}
	return err
}

// restTime is how long a process is waited for that only hangs in the mount: it
// may be another that it hangs in.
const restTime = time.Second

func (s *stopped) restOne(ctx context.Context, p *ptrace.Process) error {
	if s.optional[p.PID] {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, restTime)
		defer cancel()
	}
	return p.Rest(ctx)
}

// broken are the errors of calls whose request was ended: those of fuse itself
// (fs/fuse/dev.c, fuse_abort_conn and fuse_get_req), of a page that could not be
// read (mm/filemap.c, filemap_read), and of a fault within the call (the access
// functions of arch/x86/lib).
var broken = map[unix.Errno]bool{
	unix.ECONNABORTED: true, unix.ENOTCONN: true, unix.EIO: true, unix.EFAULT: true, unix.EINTR: true,
}

// dropping are calls that have done what they do when the old daemon is asked
// (fs/file.c, file_close_fd; mm/vma.c). To do it once more would do it to another
// descriptor or mapping.
var dropping = map[int]bool{unix.SYS_CLOSE: true, unix.SYS_CLOSE_RANGE: true, unix.SYS_MUNMAP: true}

// redo makes a thread that hung in a call make it again, as if it had only come
// to it after the swap.
func redo(th *ptrace.Thread) error {
	if !th.Hung() {
		return nil
	}
	nr, args, result, ok, err := th.CallOf()
	if err != nil || !ok {
		return err // in a page fault, which is taken again
	}
	switch {
	case result < 0 && result > -4096 && broken[unix.Errno(-result)]:
		if dropping[nr] {
			return th.Answer(0)
		}
		return th.CallAgain()
	case result > 0 && uint64(result) < args[2]:
		return redoPart(th, nr, int(int32(args[0])), result)
	}
	return nil
}

// redoPart is redo of a call that had read or written a part when it ended: all
// of it is done again, at the same place.
func redoPart(th *ptrace.Thread, nr, fd int, part int64) error {
	switch nr {
	case unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_PWRITE64:
	default:
		return nil
	}
	// What is closed here has no daemon any more to be flushed to.
	old, err := takeFD(FDRef{Task{th.Process().PID, th.TID}, fd})
	if err != nil {
		return err
	}
	defer unix.Close(old)
	flags, err := unix.FcntlInt(uintptr(old), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	writes := nr == unix.SYS_WRITE || nr == unix.SYS_PWRITE64
	if writes && flags&unix.O_APPEND != 0 {
		return nil // it would be there twice
	}
	if nr == unix.SYS_READ || nr == unix.SYS_WRITE {
		if _, err := unix.Seek(old, -part, unix.SEEK_CUR); err != nil {
			return nil // no file with a position: a part is all there was
		}
	}
	return th.CallAgain()
}
