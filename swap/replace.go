package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
	"spfs/internal/ptrace"
)

// worker is one thread that runs a batch for its process.
type worker struct {
	job     *job
	process *ptrace.Process
	program *program
	batch   *ptrace.Batch
	channel *channel
	last    bool // of its process
	began   time.Time
}

func (w *worker) close() {
	if w.channel != nil {
		w.channel.close()
		w.channel = nil
	}
	w.job.close()
}

// prepare takes every process to the point where only the verdict is missing.
func (r *run) prepare(ctx context.Context) error {
	if err := r.recreate(ctx); err != nil {
		return err
	}
	if err := r.pourFIFOs(); err != nil {
		return err
	}
	if err := setPositions(r.plan.Usage); err != nil {
		return err
	}
	r.teams = make([]team, len(r.stopped.tracers))
	for i := range r.teams {
		r.teams[i].tracer = i
	}
	for _, jobs := range r.ahead.jobs(r.plan.Usage) {
		t := &r.teams[r.stopped.tracerOf[jobs[0].task.PID]]
		t.jobs = append(t.jobs, jobs)
	}
	return r.each(func(t *team) error { return r.prepareTeam(ctx, t) })
}

// team is the work of one tracer's processes.
type team struct {
	tracer  int       // an index of stopped.tracers
	jobs    [][]*job  // by process; the first is the one that maps, if any does
	workers []*worker // those of jobs that have started
}

// each does something for all teams at the same time, on the tracers' own
// threads: to go there and back for every call would take longer than the calls.
func (r *run) each(do func(*team) error) error {
	errs := make([]error, len(r.teams))
	var wait sync.WaitGroup
	for i := range r.teams {
		wait.Add(1)
		go func() {
			defer wait.Done()
			errs[i] = r.stopped.tracers[i].Do(func() error { return do(&r.teams[i]) })
		}()
	}
	wait.Wait()
	return errors.Join(errs...)
}

func (r *run) prepareTeam(ctx context.Context, t *team) error {
	trace := r.options.Trace
	if err := r.startAll(ctx, t); err != nil {
		return err
	}
	for _, w := range t.workers {
		if err := w.supply(ctx); err != nil {
			return err
		}
		fault.Point("batch supplied")
	}
	for _, w := range t.workers {
		if err := w.awaitReady(ctx); err != nil {
			return err
		}
		fault.Point("batch ready")
		trace.add(w.job.task.PID, "prepare", w.began)
		end := trace.begin(w.job.task.PID, "copy")
		if err := w.copyPrivatePages(); err != nil {
			return err
		}
		if err := w.copySignals(); err != nil {
			return err
		}
		fault.Point("pages copied")
		end()
	}
	return nil
}

// startAll sets the batches of a team's processes going, and sees to it that
// other threads of theirs would not run on before their end even if we died.
func (r *run) startAll(ctx context.Context, t *team) error {
	began := time.Now()
	var launches []*ptrace.Launch
	var ws []*worker
	for _, jobs := range t.jobs {
		pid := jobs[0].task.PID
		p := r.stopped.process(pid)
		if th := threadOf(p, jobs[0].task.TID); th != nil {
			// Without stations, a single batch does; its process is only not as
			// well guarded against our death.
			if err := p.MakeStations(ctx, th); err != nil && len(jobs) > 1 {
				return fmt.Errorf("several threads of process %d have descriptor tables or directories of their own: %w", pid, err)
			}
		}
		fault.Point("stations made")
		for i, j := range jobs {
			w, err := r.newWorker(ctx, j, i == 0)
			if err != nil {
				closeAll(ws)
				return err
			}
			w.began, w.last = began, i == len(jobs)-1
			ws = append(ws, w)
			launches = append(launches, &ptrace.Launch{Thread: threadOf(p, j.task.TID), Program: w.program.Program})
		}
	}
	next := 0
	err := r.stopped.tracers[t.tracer].StartAll(ctx, launches, func(l *ptrace.Launch) error {
		w := ws[next]
		next++
		w.batch = l.Batch
		t.workers = append(t.workers, w)
		fault.Point("batch started")
		if !w.last {
			return nil
		}
		if err := w.process.Park(); err != nil {
			return fmt.Errorf("parking the threads of process %d: %w", w.job.task.PID, err)
		}
		fault.Point("threads parked")
		return nil
	})
	if err != nil {
		closeAll(ws[next:])
		return fmt.Errorf("starting batches: %w", err)
	}
	return nil
}

// closeAll closes what has not been started.
func closeAll(ws []*worker) {
	for _, w := range ws {
		w.close()
	}
}

// newWorker makes what is needed to set j's batch going. The first of a process
// lets parked threads go.
func (r *run) newWorker(ctx context.Context, j *job, first bool) (*worker, error) {
	p := r.stopped.process(j.task.PID)
	th := threadOf(p, j.task.TID)
	if th == nil {
		return nil, fmt.Errorf("thread %d of process %d: %w", j.task.TID, j.task.PID, ptrace.ErrGone)
	}
	if j.space != nil && j.space.Exe != nil {
		if err := j.space.Exe.ready(ctx, th, j.task); err != nil {
			j.close()
			return nil, err
		}
	}
	program, err := j.programNow(r.plan, r.verdict)
	if err != nil {
		j.close()
		return nil, err
	}
	if first {
		word, _ := p.Parked()
		program.letGo(word)
	}
	w := &worker{job: j, process: p, program: program}
	if err := th.CheckFilters(w.program.Program); err != nil {
		j.close()
		return nil, err
	}
	return w, nil
}

func threadOf(p *ptrace.Process, tid int) *ptrace.Thread {
	if p == nil {
		return nil
	}
	for _, th := range p.Threads {
		if th.TID == tid {
			return th
		}
	}
	return nil
}

// supply takes our end of the channel and sends all that the batch will
// receive: what is queued stays readable even if we die.
func (w *worker) supply(ctx context.Context) error {
	task := w.job.task
	told, err := w.batch.Await32(ctx, w.program.paired, 0)
	if err != nil {
		return fmt.Errorf("waiting for the socket pair of process %d: %w", task.PID, err)
	}
	if told == 0 {
		return w.ended(ctx)
	}
	end := int(w.batch.Load32(w.program.pair))
	number := int32(w.batch.Load32(w.program.pair.Add(4)))
	fd, err := takeFD(FDRef{task, end})
	if err != nil {
		return err
	}
	w.channel = &channel{file: os.NewFile(uintptr(fd), "channel"), pid: task.PID}
	fault.Point("channel taken")
	for _, m := range w.program.messages {
		err := w.channel.send(number, m)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return w.ended(ctx) // it could not use what came before
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitReady waits until all that can fail has been done in the process.
func (w *worker) awaitReady(ctx context.Context) error {
	told, err := w.batch.Await32(ctx, w.program.ready, 0)
	if err != nil {
		return fmt.Errorf("waiting for process %d to prepare: %w", w.job.task.PID, err)
	}
	if told == 0 {
		return w.ended(ctx)
	}
	return nil
}

// ended explains a batch that ended before it was told to.
func (w *worker) ended(ctx context.Context) error {
	if err := w.batch.Wait(ctx); err != nil {
		return err
	}
	return fmt.Errorf("process %d: its batch ended by itself", w.job.task.PID)
}

// copyPrivatePages brings what the process wrote to private mappings into the
// new ones.
func (w *worker) copyPrivatePages() error {
	var pagemap *os.File
	for _, m := range w.program.moved {
		if m.mapping.Shared {
			continue
		}
		if pagemap == nil {
			var err error
			if pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", w.job.task.PID)); err != nil {
				return fmt.Errorf("looking for private pages: %w", err)
			}
			defer pagemap.Close()
		}
		to, err := w.batch.Result(m.made)
		if err != nil {
			return fmt.Errorf("process %d: mapping %s: %w", w.job.task.PID, m.mapping.Path, err)
		}
		runs, err := privatePages(pagemap, m.mapping.Start, m.mapping.End)
		if err == nil {
			err = copyRuns(w.process, runs, m.mapping.Start, to)
		}
		if err != nil {
			return fmt.Errorf("process %d: mapping of %s: %w", w.job.task.PID, m.mapping.Path, err)
		}
	}
	return nil
}

// hangUp tells the batch to look at the verdict.
func (w *worker) hangUp() {
	if w.channel == nil {
		return
	}
	if err := w.channel.hangUp(); err != nil {
		w.channel.close() // to the batch it is the same
	}
}

// wentBack waits until the batch has undone everything. That one of its calls
// failed is why the swap goes back, and has been told.
func (w *worker) wentBack(ctx context.Context) error {
	if w.channel == nil {
		// It waits for messages from a pair of which it holds both ends: only
		// the end of ctx makes that call fail, and the batch unwind.
		over, cancel := context.WithCancel(ctx)
		cancel()
		ctx = over
	}
	var failed *ptrace.CallError
	err := w.batch.Wait(ctx)
	if errors.As(err, &failed) || errors.Is(err, ptrace.ErrGone) || w.channel == nil && errors.Is(err, ptrace.ErrTimeout) {
		return nil
	}
	return err
}

// setPositions gives every replacement the old description's position and the
// flags that can be set on an open file. Those that have them already are left
// alone: most do when all is stopped, if it was done just before.
func setPositions(u *Usage) error {
	for _, d := range u.Descriptions {
		if d.Flags&unix.O_PATH != 0 {
			continue
		}
		const settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME
		now := placed{d.Replacement, d.NewPos, d.Flags & settable}
		was := placed{}
		if d.placed != nil {
			was, *d.placed = *d.placed, placed{}
		}
		fd := int(d.Replacement.Fd())
		if was.file != now.file || was.pos != now.pos {
			if _, err := unix.Seek(fd, d.NewPos, unix.SEEK_SET); err != nil && !d.isFIFO() {
				return fmt.Errorf("setting the position of %s to %d: %w", d.Path, d.NewPos, err)
			}
		}
		if was.file != now.file || was.flags != now.flags {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, now.flags); err != nil {
				return fmt.Errorf("setting the flags of %s to %#o: %w", d.Path, now.flags, err)
			}
		}
		if d.placed != nil {
			*d.placed = now
		}
	}
	return nil
}

// setEarlyPositions is setPositions while everybody runs, of what has a
// replacement then. What can't be set is told when it counts.
func setEarlyPositions(u *Usage) {
	early := &Usage{}
	for _, d := range u.Descriptions {
		if d.placed != nil && d.Replacement != nil && !d.isFIFO() {
			early.Descriptions = append(early.Descriptions, d)
		}
	}
	_ = setPositions(early)
}
