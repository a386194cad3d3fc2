package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"spfs/internal/fault"
	"spfs/internal/ptrace"
)

// DefaultTimeout bounds a run when [Options] doesn't.
const DefaultTimeout = 10 * time.Second

// Options say how a run is done.
type Options struct {
	// Timeout bounds everything up to the commit; DefaultTimeout if 0.
	Timeout time.Duration
	// Move takes the new mount off the place where it was mounted before.
	Move bool
	// OpenGate is called once nothing is known to be in the way, and before
	// anyone is stopped: a shut stub must let its requests go on there, onto
	// the new mount, since who waits in one can't be stopped. It returns how
	// to shut the gate again if the run fails, or nil where it was open before.
	// That there is an OpenGate says that the old file system answers after
	// it; without one it is not asked anything.
	OpenGate func(context.Context) (shut func() error, err error)
	// GateShut says that OpenGate opens a gate that is shut: see Recovery.ShutGate.
	GateShut bool
	// Keep is given, just before the run commits, what whoever keeps it can give
	// to [Recover] should the run be cut off: see [Recovery.Kept]. It stays the
	// run's. Nil if nobody keeps it.
	Keep func([]*os.File) error
	// Progress is told what comes next, also while processes are stopped: it
	// must not wait for anything. Nil if nobody wants to know.
	Progress func(phase string)
	// Trace takes down what is done when, unless it is nil.
	Trace *Trace
}

// Result says what a run did. Its JSON form is a stable contract.
type Result struct {
	Processes int   `json:"processes"`
	Threads   int   `json:"threads"`
	FDs       int   `json:"fds"`
	Mappings  int   `json:"mappings"`
	Cwds      int   `json:"cwds"`
	Roots     int   `json:"roots"`
	Mounts    int   `json:"mounts"`     // mount points that show the new file system
	StoppedUS int64 `json:"stopped_us"` // from the first process stopped to the last let go, in microseconds
	TotalUS   int64 `json:"total_us"`   // of the run, without the planning
}

// Run swaps what the plan says. It returns a [*RefusedError] if something is
// in the way; any other error means that it failed, and that everything is as
// it was, save where the error says so. The plan can't be run twice.
func (p *Plan) Run(ctx context.Context, o Options) (*Result, error) {
	if err := p.doubts(); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()

	began := time.Now()
	for {
		r := &run{plan: p, options: o, began: began}
		err := r.do(bounded)
		r.close()
		if err == nil {
			r.result.TotalUS = time.Since(began).Microseconds()
			return &r.result, nil
		}
		if !r.killed || bounded.Err() != nil {
			return nil, err
		}
		p.Stopped = nil // all are as they were, but for who was killed: it is not there any more
	}
}

// run is one swap under way.
type run struct {
	plan    *Plan
	options Options
	began   time.Time
	result  Result

	shutGate func() error // nil if no gate was opened
	stopped  *stopped
	journal  *journal
	aborted  bool // the old connection is no more
	killed   bool // it failed, and somebody was killed while it was stopped
	verdict  *verdict
	ahead    *ahead   // nil until everything else has been done before the stop
	teams    []team   // one per tracer
	old      *os.File // O_PATH: while it is open, no other file system gets its number
	held     held
	made     []*os.File // replacements that could be made only when all was stopped
}

// close lets everyone go who hasn't been.
func (r *run) close() {
	for _, t := range r.teams {
		for _, w := range t.workers {
			w.close()
		}
	}
	if r.stopped != nil {
		r.stopped.close()
	}
	if r.verdict != nil {
		r.verdict.close()
	}
	if r.journal != nil {
		r.journal.close()
	}
	r.ahead.close()
	r.held.close()
	if r.old != nil {
		r.old.Close()
	}
	for _, f := range r.made {
		f.Close()
	}
}

func (r *run) do(ctx context.Context) error {
	if err := r.upToCommit(ctx); err != nil {
		if r.aborted {
			err = fmt.Errorf("%w; the old mount is dead now, whose requests were ended: run this again", err)
		}
		killed := r.stopped != nil && (errors.Is(err, ptrace.ErrGone) || r.stopped.died())
		left := r.endJournal(r.goBack())
		r.killed = killed && !r.aborted && left == nil
		return errors.Join(err, left)
	}
	return r.endJournal(r.goForward())
}

// endJournal removes the journal, unless something is left to do.
func (r *run) endJournal(left error) error {
	if r.journal == nil {
		return left
	}
	if left != nil {
		return fmt.Errorf("%w; \"spfs-swap recover\" tries again", left)
	}
	return r.journal.remove()
}

// beginJournal notes what the run is about.
func (r *run) beginJournal() (err error) {
	if err := refuseAfterCutOff(r.plan.From.Mount.Dev); err != nil {
		return err
	}
	if r.journal, err = newJournal(); err != nil {
		return err
	}
	fault.Point("journal made")
	if r.verdict, err = newVerdict(r.journal.path); err != nil {
		return err
	}
	fault.Point("verdict made")
	return r.noteScope()
}

// noteScope brings the journal up to date.
func (r *run) noteScope() error {
	if r.journal.written != nil && r.noted(r.journal.written) {
		return nil
	}
	rec, err := r.record()
	if err != nil {
		return err
	}
	return r.journal.write(rec)
}

// upToCommit does everything that can fail.
func (r *run) upToCommit(ctx context.Context) (err error) {
	if err := r.beginJournal(); err != nil {
		return err
	}
	fault.Point("journal begun")
	r.phase("asking")
	if err := r.openGate(ctx); err != nil {
		return err
	}
	fault.Point("gate opened")
	if err := r.stopInQuiet(ctx); err != nil {
		return err
	}
	fault.Point("all stopped")
	if err := r.noteScope(); err != nil {
		return err
	}
	r.phase("preparing " + number(len(r.plan.Usage.Processes), "process", "processes"))
	if err := r.prepare(ctx); err != nil {
		return err
	}
	fault.Point("all prepared")
	if err := r.checkMounts(); err != nil {
		return err
	}
	if r.options.Keep != nil {
		if err := r.options.Keep(r.kept()); err != nil {
			return err
		}
	}
	fault.Point("about to commit")
	return ctx.Err()
}

// openGate makes a stub answer, and then asks the old file system what only it
// can tell.
func (r *run) openGate(ctx context.Context) (err error) {
	if r.plan.abort {
		return r.plan.doubts()
	}
	if r.options.OpenGate == nil {
		return r.plan.Err()
	}
	if r.shutGate, err = r.options.OpenGate(ctx); err != nil {
		return err
	}
	r.plan.AskOld = true
	if len(r.plan.Obstacles) == 0 {
		if err := r.plan.ask(ctx); err != nil {
			return err
		}
	}
	if len(r.plan.Obstacles) > 0 {
		if err := r.plan.look(ctx, true); err != nil {
			return err
		}
	}
	return r.plan.Err()
}

// goBack lets every batch undo what it did, and brings back the gate.
func (r *run) goBack() error {
	r.phase("going back")
	ctx, cancel := graceful()
	defer cancel()
	back := r.each(func(t *team) error {
		var errs []error
		for _, w := range t.workers {
			w.hangUp()
		}
		for _, w := range t.workers {
			errs = append(errs, w.wentBack(ctx))
		}
		return errors.Join(errs...)
	})
	var released, shut error
	if r.stopped != nil {
		released = r.stopped.releaseAll()
	}
	r.held.close()
	if r.shutGate != nil {
		shut = r.shutGate()
	}
	return errors.Join(back, released, shut)
}

// goForward commits, and sees everyone off. From here on nothing is undone:
// errors are told, and the rest is done all the same.
func (r *run) goForward() error {
	r.count()
	r.dropPipes()
	r.phase("committing")
	r.verdict.goForward()
	fault.Point("committed")
	r.phase("changing " + number(len(r.plan.Usage.Mounts), "mount point", "mount points"))
	errs := []error{r.changeMounts()}
	ctx, cancel := graceful()
	defer cancel()
	errs = append(errs, r.each(func(t *team) error { return t.relock(ctx) }))
	errs = append(errs, r.each(func(t *team) error { return r.seeOff(ctx, t) }))
	errs = append(errs, r.stopped.releaseAll())
	r.result.StoppedUS = r.stopped.duration().Microseconds()
	fault.Point("all let go")
	errs = append(errs, r.changeLateMounts())
	if r.plan.Scope.Everyone() && !r.plan.Silent() {
		errs = append(errs, r.swapStragglers())
	}
	if r.options.Move {
		errs = append(errs, r.detachTo())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("swapped, but not all of it: %w", err)
	}
	return nil
}

// relock waits for the batches that take locks after the verdict: as long as
// everyone is stopped, nobody gets in between.
func (t *team) relock(ctx context.Context) error {
	var errs []error
	for _, w := range t.workers {
		if w.program.relocks {
			w.hangUp()
		}
	}
	for _, w := range t.workers {
		if w.program.relocks {
			errs = append(errs, unlessGone(w.batch.Wait(ctx)))
		}
	}
	return errors.Join(errs...)
}

// unlessGone is err, but for that of a process which was killed meanwhile: there
// is nothing left to do in it.
func unlessGone(err error) error {
	if errors.Is(err, ptrace.ErrGone) {
		return nil
	}
	return err
}

// seeOff waits for the batches of a team, and lets its processes go when all of
// them are over. Whoever is let go takes a processor from the batches that are left,
// and has something to catch up with: if each is let go as soon as it can be, the last
// one is stopped for longer, and by the median nobody for less. But nobody is kept for
// a batch that waits for something, such as the daemon of an old file that it closes.
func (r *run) seeOff(ctx context.Context, t *team) error {
	var errs []error
	for _, w := range t.workers {
		w.hangUp()
		fault.Point("verdict told")
	}
	began := time.Now()
	batches := make([]*ptrace.Batch, len(t.workers))
	left := map[int]int{} // by process: how many are not over
	for i, w := range t.workers {
		batches[i] = w.batch
		left[w.job.task.PID]++
	}
	var over []int // processes in which all is done
	letGo := func() {
		for _, pid := range over {
			errs = append(errs, r.stopped.release(pid))
			fault.Point("let go")
		}
		over = nil
	}
	err := r.stopped.tracers[t.tracer].WaitAll(ctx, batches, func(i int, err error) {
		w := t.workers[i]
		pid := w.job.task.PID
		if !w.program.relocks { // relock told it
			errs = append(errs, unlessGone(err))
		}
		fault.Point("batch over")
		r.options.Trace.add(pid, "finish", began)
		if left[pid]--; left[pid] == 0 {
			over = append(over, pid)
		}
	}, letGo)
	letGo()
	return errors.Join(append(errs, err)...)
}

// graceful bounds what must be waited for whatever the user's time says: it is
// the time in which batches that have been told their verdict end by
// themselves, a few system calls each.
func graceful() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), DefaultTimeout)
}

// count says what is swapped.
func (r *run) count() {
	u := r.plan.Usage
	r.result.Processes = len(u.Processes)
	for _, p := range u.Processes {
		r.result.Threads += len(p.Tasks)
	}
	for _, t := range u.Tables {
		r.result.FDs += len(t.FDs)
	}
	for _, s := range u.Spaces {
		r.result.Mappings += len(s.Mappings)
	}
	for _, c := range u.Contexts {
		if c.Cwd != nil {
			r.result.Cwds++
		}
		if c.Root != nil {
			r.result.Roots++
		}
	}
}
