package swap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"spfs/internal/exit"
	"spfs/internal/fusestate"
	"spfs/internal/mounts"
)

// Endpoint is one side of a swap: a mount point in our own namespace.
type Endpoint struct {
	Path  string // as the user gave it
	Mount *mounts.Mount
}

// NewEndpoint finds the mount at a mount point, without asking its file
// system.
func NewEndpoint(path string) (Endpoint, error) {
	m, err := mounts.Lookup(path)
	if err != nil {
		return Endpoint{}, err
	}
	return Endpoint{path, m}, nil
}

// Plan is a swap made ready: who uses the old file system, and a replacement
// for everything that they hold, open. It owns both until Close.
type Plan struct {
	From, To  Endpoint
	Scope     Scope
	Usage     *Usage
	Obstacles []Obstacle // the Usage's, and what is missing or different on To
	Losses    []Obstacle // what would be one, and is lost instead: see [AcceptLoss]

	// AskOld says that From's file system answers. Then what the kernel
	// believes of it may be checked with it where it decides.
	AskOld bool

	// Stopped are processes that are stopped and stay so. Refresh need not
	// read twice what they alone could change. Whoever sets it does so before
	// Refresh, and only ever adds to it.
	Stopped map[int]bool

	handled map[mounts.Handle]mounts.Handled // what is watched

	opener *opener
	known  *knowledge

	abort, acceptLoss bool
	old               oldState
}

// Option changes how a plan is made.
type Option func(*Plan)

// AskOld lets the planner ask the old file system. Without it none is ever
// asked, as it may hang.
func AskOld() Option { return func(p *Plan) { p.AskOld = true } }

// NewPlan finds who in scope uses from's file system, and opens what they will
// get of to's. Nobody is stopped, nothing is changed. What is in the way is in
// the plan's Obstacles, see [Plan.Err]; an error is only what keeps the plan
// from being made at all. The caller closes the plan.
func NewPlan(ctx context.Context, from, to Endpoint, scope Scope, options ...Option) (*Plan, error) {
	switch {
	case !from.Mount.FUSE():
		return nil, fmt.Errorf("--from %s: it is %s, not FUSE", from.Path, from.Mount.FSType)
	case from.Mount.Dev == to.Mount.Dev:
		return nil, exit.Usage("--from %s and --to %s are the same file system", from.Path, to.Path)
	}
	p := &Plan{From: from, To: to, Scope: scope, known: &knowledge{}}
	for _, o := range options {
		o(p)
	}
	if err := p.make(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// make is the first look.
func (p *Plan) make(ctx context.Context) (err error) {
	if p.opener, err = newOpener(p); err != nil {
		return err
	}
	return p.look(ctx, true)
}

// Refresh looks again at everybody in scope and brings the plan up to date:
// replacements that still fit are kept, what is new is opened, what is gone is
// closed. It is for when all processes are stopped and the old file system has
// been flushed: positions and flags are then final, and sizes that changed
// since are compared again.
//
// It returns a [*RefusedError] if something is in the way now.
func (p *Plan) Refresh(ctx context.Context) error {
	if same, err := p.refreshSame(ctx); same || err != nil {
		return err
	}
	usage, err := find(ctx, p.From.Mount.Dev, p.Scope, p.known)
	if err != nil {
		return err
	}
	p.opener.final = true
	if err := p.fill(ctx, usage); err != nil {
		return err
	}
	return p.Err()
}

// forgetNames makes the kernel ask the new file system's daemon again for names that
// have been looked up there and are not held open. It believes what it was told for
// as long as the daemon said, and nobody tells it what is changed through the old
// mount since: that a file has gone (to open it with O_CREAT would fail, for what is
// believed to be there is opened, not made), has come, is another by now, or has
// grown (what is appended would be written over its end).
func (p *Plan) forgetNames(ctx context.Context) error {
	if !p.To.Mount.FUSE() {
		return nil
	}
	what := "making the kernel forget the names of --to " + p.To.Path
	return within(ctx, what, func() error { return mounts.Forget(p.opener.to) })
}

// learn looks once more at those who use the old file system, while they run:
// what the kernel's tables show to be the same when they are stopped need not
// be read again then. Where the tables can't be read, it does nothing.
func (p *Plan) learn(ctx context.Context) error {
	reader, err := fusestate.Shared()
	if err != nil {
		return nil // /proc tells it all, if not as fast
	}
	p.known.reader = reader
	if err := p.look(ctx, false); err != nil {
		return err
	}
	return p.Err()
}

// fill makes usage the plan's and opens what it lacks.
func (p *Plan) fill(ctx context.Context, usage *Usage) error {
	p.Usage = usage
	p.judgeOld(usage)
	p.Obstacles = append([]Obstacle(nil), usage.Obstacles...)
	p.inFlightObstacles()
	p.resolveWatches(ctx, usage)
	if !p.opener.final {
		p.Obstacles = append(p.Obstacles, eventObstacles(ctx, usage)...)
	}
	err := p.opener.fill(ctx, usage)
	p.Obstacles = append(p.Obstacles, p.opener.obstacles...)
	p.Obstacles = append(p.Obstacles, signalObstacles(usage)...)
	unlinked, unlinkedErr := p.unlinkedObstacles(usage)
	p.Obstacles = append(p.Obstacles, unlinked...)
	err = errors.Join(err, unlinkedErr)
	p.Obstacles = append(p.Obstacles, p.oldObstacles(usage)...)
	p.Obstacles = append(p.Obstacles, p.lost(usage)...)
	p.loses()
	return err
}

// Close closes every replacement.
func (p *Plan) Close() {
	if p.opener != nil {
		p.opener.close()
	}
	p.closeHandled()
	p.known.close()
}

// Err returns a [*RefusedError] of status [exit.Refused] if anything is in the
// way, and nil if not.
func (p *Plan) Err() error {
	if len(p.Obstacles) == 0 {
		return nil
	}
	return exit.Refuse(&RefusedError{p.Obstacles})
}

// doubts is [Plan.Err] without what the old file system has not been asked yet.
func (p *Plan) doubts() error {
	var certain []Obstacle
	for _, o := range p.Obstacles {
		if !o.unasked && !(o.hung && p.abort) {
			certain = append(certain, o)
		}
	}
	if len(certain) == 0 {
		return nil
	}
	return exit.Refuse(&RefusedError{p.Obstacles})
}

// RefusedError says that a swap can't be done, and why.
type RefusedError struct{ Obstacles []Obstacle }

// Error is one line for one obstacle; for several a line that sums up, and one
// for each.
func (e *RefusedError) Error() string {
	if len(e.Obstacles) == 1 {
		return "refused, and nothing was changed: " + e.Obstacles[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "refused: %d things are in the way, and nothing was changed", len(e.Obstacles))
	for _, o := range e.Obstacles {
		b.WriteString("\n  ")
		b.WriteString(o.String())
	}
	return b.String()
}

// errElsewhere is a reason for an Obstacle, not a failure.
var errElsewhere = errors.New("it lies outside the part of the file system that --from shows")
