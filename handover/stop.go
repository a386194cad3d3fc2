package handover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"spfs/internal/devfuse"
	"spfs/internal/fusedev"
	"spfs/internal/proctree"
	"spfs/internal/ptrace"
)

// defaultTimeout is how long everyone may take to stop, unless told otherwise.
const defaultTimeout = 10 * time.Second

// stopper stops one tree.
type stopper struct {
	o       StopOptions
	hold    func(*journal) error
	tracer  *ptrace.Tracer
	control *control
	looker  *looker

	clients, daemons, rest []*ptrace.Process // those that are stopped, in this order
	census                 *census
	ice                    *ice
	standIns               []*standIn
	records                []*Record

	placeholders []*devfuse.Description // that were made before anybody was stopped
}

// stopTree stops a tree. Before anything is put into a process, hold is called
// with what is needed to undo it; before that, foreseen with what CRIU will
// probably have to be told, or with nothing. If it fails the tree runs on as
// before.
func stopTree(ctx context.Context, o StopOptions, foreseen func(CRIU) error, hold func(*journal) error) (_ *stopper, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	s := &stopper{o: o, hold: hold, tracer: ptrace.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo())
		}
	}()
	tell, err := s.foresee()
	if err != nil {
		tell = CRIU{} // if it matters, it is found again below
	}
	if err := foreseen(tell); err != nil {
		return nil, err
	}
	if s.control, err = openControl(); err != nil {
		return nil, err
	}
	for {
		err = s.attempt(ctx)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errUnseen) && !errors.Is(err, errBusy) && !errors.Is(err, ptrace.ErrGone) || ctx.Err() != nil {
			return nil, err
		}
		// Somebody did something in between: everyone goes on, for a moment.
		if err := s.letGo(); err != nil {
			return nil, err
		}
	}
}

// errBusy: a daemon has something to do again.
var errBusy = errors.New("a request is not answered")

// attempt stops everyone once. What it has done is in s whether it fails or
// not.
func (s *stopper) attempt(ctx context.Context) error {
	c, err := takeCensus(ctx, s.o.Root)
	if err != nil {
		return err
	}
	s.census = c
	// Refused, if at all, before anyone is stopped.
	order, err := c.stopOrder()
	if err != nil {
		return err
	}
	if err := s.seizeClients(ctx); err != nil {
		return err
	}
	s.looker = newLooker()
	// The daemons are asked for everything that they will be asked for.
	if err := s.looker.look(s.census, s.o.LeaveRunning); err != nil {
		return err
	}
	if err := s.seizeDaemons(ctx, order); err != nil {
		return err
	}
	if err := s.seizeRest(ctx); err != nil {
		return err
	}
	if err := s.exchange(); err != nil {
		return err
	}
	return s.freeze(ctx)
}

// seizeClients stops who uses the mounts, until nobody else does. The daemons
// run, so that what they are asked gets its answer.
func (s *stopper) seizeClients(ctx context.Context) error {
	for {
		var more []int
		for _, pid := range s.census.clients() {
			if !slices.ContainsFunc(s.clients, func(p *ptrace.Process) bool { return p.PID == pid }) {
				more = append(more, pid)
			}
		}
		if len(more) == 0 {
			return nil
		}
		ps, err := s.tracer.SeizeAll(ctx, more)
		if err != nil {
			return s.explain(err)
		}
		s.clients = append(s.clients, ps...)
		c, err := takeCensus(ctx, s.o.Root)
		if err != nil {
			return err
		}
		s.census = c
	}
}

// seizeDaemons stops the daemons, each when it has nothing left to do.
func (s *stopper) seizeDaemons(ctx context.Context, order []int) error {
	if err := devfuse.Take(s.census.devices); err != nil {
		return err
	}
	for _, pid := range order {
		if err := s.awaitIdle(ctx, pid); err != nil {
			return err
		}
		ps, err := s.tracer.SeizeAll(ctx, []int{pid})
		if err != nil {
			return err
		}
		s.daemons = append(s.daemons, ps...)
	}
	return s.checkIdle()
}

// awaitIdle waits until a daemon has answered everything.
func (s *stopper) awaitIdle(ctx context.Context, pid int) error {
	const first, last = 50 * time.Microsecond, 2 * time.Millisecond
	for pause := first; ; pause = min(2*pause, last) {
		busy := uint64(0)
		for _, d := range s.census.devices {
			if !slices.ContainsFunc(d.Holders, func(h devfuse.Holder) bool { return h.PID == pid }) {
				continue
			}
			idle, err := s.control.idle(d)
			if err != nil {
				return err
			}
			if !idle {
				busy = d.Connection
				break
			}
		}
		if busy == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			n, _ := s.control.waiting(busy)
			return fmt.Errorf("%s has %d requests of connection %d left to answer: %w", describe(pid), n, busy, err)
		}
		time.Sleep(pause) // the kernel tells nobody
	}
}

// checkIdle says whether all daemons were idle when they were stopped.
func (s *stopper) checkIdle() error {
	for _, d := range s.census.devices {
		idle, err := s.control.idle(d)
		if err != nil {
			return err
		}
		if !idle {
			return fmt.Errorf("connection %d of %s: %w", d.Connection, describe(d.Holders[0].PID), errBusy)
		}
	}
	return nil
}

// restTime bounds the stop of a process that uses no mount. One that has begun
// to, since, waits for a daemon that is stopped.
const restTime = 500 * time.Millisecond

// seizeRest stops all others of the tree, and looks that everybody is stopped
// who is in it, and nothing is open that was not looked at.
func (s *stopper) seizeRest(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, restTime)
	defer cancel()
	for {
		stopped := make(map[int]bool)
		for _, p := range s.all() {
			stopped[p.PID] = true
		}
		pids, err := proctree.Of(s.o.Root)
		if err != nil {
			return err
		}
		var more []int
		for _, pid := range pids {
			if !stopped[pid] && !zombie(pid) {
				more = append(more, pid)
			}
		}
		if len(more) == 0 {
			break
		}
		ps, err := s.tracer.SeizeAll(short, more)
		if errors.Is(err, ptrace.ErrTimeout) {
			return fmt.Errorf("%w: %w", errBusy, s.explain(err))
		}
		if err != nil {
			return err
		}
		s.rest = append(s.rest, ps...)
	}
	if err := s.checkIdle(); err != nil {
		return err
	}
	devices := s.census.devices
	c, err := takeCensus(ctx, s.o.Root)
	if err != nil {
		return err
	}
	if !sameDevices(devices, c.devices) {
		return fmt.Errorf("%w: another /dev/fuse", errUnseen)
	}
	c.devices, s.census = devices, c // those that were taken
	if _, err := c.stopOrder(); err != nil {
		return err
	}
	return s.looker.unseen(c)
}

func sameDevices(a, b []*devfuse.Description) bool {
	return slices.EqualFunc(a, b, func(a, b *devfuse.Description) bool {
		return a.Connection == b.Connection && a.Flags == b.Flags && slices.Equal(a.Holders, b.Holders)
	})
}

// all are the processes that are stopped.
func (s *stopper) all() []*ptrace.Process { return slices.Concat(s.clients, s.daemons, s.rest) }

// exchange takes the daemons' places.
func (s *stopper) exchange() (err error) {
	if err := s.takePlaceholders(); err != nil {
		return err
	}
	if s.census.state.Partial {
		if err := s.probe(); err != nil {
			return err
		}
	}
	s.records = s.looker.complete(s.census)
	for _, r := range s.records {
		if err := r.Check(); err != nil {
			return err
		}
	}
	if err := s.findIce(); err != nil {
		return err
	}
	if err := s.hold(s.journal()); err != nil {
		return err
	}
	for _, p := range s.daemons {
		if err := s.exchangeIn(p, false); err != nil {
			return err
		}
	}
	for _, r := range s.records {
		if err := s.standFor(r); err != nil {
			return err
		}
	}
	return nil
}

// exchangeIn takes a daemon's place, or with back gives it its own. A dump that
// is given up does not cut it off: what had been received just then, and was not
// closed yet, would be left in the process.
func (s *stopper) exchangeIn(p *ptrace.Process, back bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	return devfuse.Exchange(ctx, p, s.census.devices, back)
}

// standFor begins to answer for a connection's daemon.
func (s *stopper) standFor(r *Record) error {
	for _, d := range s.census.devices {
		if d.Connection != r.ID {
			continue
		}
		conn, err := fusedev.Clone(d.File())
		if err != nil {
			return fmt.Errorf("connection %d: %w", r.ID, err)
		}
		a := standInOn(conn, r, false)
		a.strict = s.o.LeaveRunning
		if err := a.start(); err != nil {
			return errors.Join(err, conn.Close())
		}
		s.standIns = append(s.standIns, a)
		return a.learn(s.o.Root, d.Holders[0].PID, s.looker.systems[r.ID].root)
	}
	return fmt.Errorf("connection %d: its device is gone", r.ID)
}

// findIce says where the tree will be frozen.
func (s *stopper) findIce() (err error) {
	var pids []int
	for _, p := range s.all() {
		pids = append(pids, p.PID)
	}
	slices.Sort(pids)
	root := slices.Index(pids, s.o.Root)
	if root < 0 {
		return fmt.Errorf("%s: %w", describe(s.o.Root), ptrace.ErrGone)
	}
	pids[0], pids[root] = pids[root], pids[0] // first
	s.ice, err = findIce(pids)
	return err
}

// freeze leaves the tree to CRIU: frozen, and traced by nobody.
func (s *stopper) freeze(ctx context.Context) error {
	if err := s.ice.close(); err != nil {
		return err
	}
	// Frozen tasks leave their stops for the freezer, and make no system call
	// again before they are thawed (kernel/signal.c, get_signal).
	if err := s.release(); err != nil {
		return err
	}
	return s.ice.cgroup.AwaitFrozen(ctx)
}

// release lets everyone go who is stopped: daemons first, those that answer
// others before those.
func (s *stopper) release() error {
	var errs []error
	slices.Reverse(s.daemons)
	for _, p := range slices.Concat(s.daemons, s.rest, s.clients) {
		errs = append(errs, p.Release())
	}
	s.clients, s.daemons, s.rest = nil, nil, nil
	return errors.Join(errs...)
}

// letGo puts everything back that an attempt has done, and lets the tree run
// on.
func (s *stopper) letGo() error { return s.letGoWithin(undoTime) }

// letGoWithin is letGo, where whoever else traces the tree is waited for.
func (s *stopper) letGoWithin(patience time.Duration) error {
	var errs []error
	// From here on who asks waits for the daemons: nobody else reads the
	// connections. What was kept for them comes first.
	for _, a := range s.standIns {
		t, err := a.endDump()
		errs = append(errs, err)
		if len(t.lookups) > 0 {
			errs = append(errs, fmt.Errorf("connection %d: %d files were looked up while the daemon was stopped; it may be told to forget them once too often, and had best be started anew",
				a.rec.ID, len(t.lookups)))
		}
	}
	if s.ice != nil && s.all() == nil {
		errs = append(errs, s.putBackFrozen(patience))
	} else if s.census != nil {
		for _, p := range s.daemons {
			if err := s.exchangeIn(p, true); err != nil && !errors.Is(err, ptrace.ErrGone) {
				errs = append(errs, err)
			}
		}
	}
	s.standIns = nil
	if s.ice != nil {
		errs = append(errs, s.ice.open())
	}
	errs = append(errs, s.release())
	if s.ice != nil {
		errs = append(errs, s.ice.remove())
		s.ice = nil
	}
	if s.census != nil {
		for _, d := range s.census.devices {
			d.Close()
		}
		s.census = nil
	}
	if s.looker != nil {
		s.looker.close()
		s.looker = nil
	}
	return errors.Join(errs...)
}

// undoTime bounds what puts a process back.
const undoTime = 5 * time.Second

// undo is letGo for good.
func (s *stopper) undo() error { return s.undoWithin(undoTime) }

func (s *stopper) undoWithin(patience time.Duration) error {
	err := s.letGoWithin(patience)
	closeAll(s.placeholders)
	s.tracer.Close()
	if s.control != nil {
		s.control.close()
	}
	return err
}

// lost gives everything back when the tree is gone.
func (s *stopper) lost() error {
	// The mounts end with their last device: what we hold of them first, so
	// that nobody is asked.
	var errs []error
	for _, a := range s.standIns {
		errs = append(errs, a.end())
	}
	for _, d := range s.census.devices {
		d.Close()
	}
	s.looker.close()
	errs = append(errs, s.ice.remove())
	s.tracer.Close()
	s.control.close()
	return errors.Join(errs...)
}

// putBackFrozen gives the daemons of the frozen tree their devices back, and
// lets all of it run: it is thawed with the first of them.
func (s *stopper) putBackFrozen(patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return putBackDaemons(ctx, s.tracer, s.census.devices, s.ice)
}

// explain says what a process was doing that did not stop.
func (s *stopper) explain(err error) error {
	var late *ptrace.TimeoutError
	if !errors.As(err, &late) {
		return err
	}
	what := doing(late.TID)
	for conn, pids := range s.census.served {
		if n, werr := s.control.waiting(conn); werr == nil && n > 0 {
			return fmt.Errorf("%s does not stop: thread %d is in %s; %s has %d requests of connection %d left to answer: %w",
				describe(late.PID), late.TID, what, describe(pids[0]), n, conn, err)
		}
	}
	return fmt.Errorf("%s does not stop: thread %d is in %s: %w", describe(late.PID), late.TID, what, err)
}

// tell is what is told of a stopped tree.
func (s *stopper) tell() stopped {
	t := stopped{Used: s.looker.files, Records: s.records}
	t.Tell.FreezeCgroup, t.Tell.Temporary = s.ice.cgroup.Path(), s.ice.temporary
	for _, f := range t.Used {
		t.Tell.External = append(t.Tell.External, f.Key)
	}
	for _, d := range s.census.devices {
		t.Tell.External = append(t.Tell.External, d.Key())
	}
	return t
}

// check says whether a stand-in was asked for what nobody may answer.
func (s *stopper) check() error {
	var errs []error
	for _, a := range s.standIns {
		errs = append(errs, a.failure())
	}
	return errors.Join(errs...)
}
