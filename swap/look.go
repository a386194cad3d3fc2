package swap

import (
	"context"
	"errors"
	"strings"
	"time"
)

// looks is how often something must be found in the way before it is taken to be,
// while everybody runs. Between two looks is a pause, each twice as long as the one
// before: the kernel tells nobody when it changes.
const (
	looks      = 5
	firstPause = 5 * time.Millisecond
)

// look finds who uses the old file system, while they run, and what is in the way of
// a swap; it asks the old file system, if it may, when ask says so.
//
// Of a process at work it sees states that are over a moment later, or that never
// were: a descriptor's number that names another file by the time its size is
// asked, a file just about to be unlinked, a lock held for a millisecond. So what
// is in the way must be so at every look; what is not shows when all are stopped.
func (p *Plan) look(ctx context.Context, ask bool) error {
	if err := p.lookOnce(ctx, ask); err != nil {
		return err
	}
	for i := 1; i < looks && len(p.Obstacles) > 0; i++ {
		select {
		case <-time.After(firstPause << (i - 1)):
		case <-ctx.Done():
			return ctx.Err()
		}
		before := p.Obstacles
		if err := p.lookOnce(ctx, ask); err != nil {
			return err
		}
		p.keepStill(before)
	}
	return nil
}

func (p *Plan) lookOnce(ctx context.Context, ask bool) error {
	p.known.stopped = p.Stopped
	usage, err := find(ctx, p.From.Mount.Dev, p.Scope, p.known)
	if err != nil {
		return err
	}
	p.opener.final = false
	if err := p.fill(ctx, usage); err != nil || !ask {
		return err
	}
	return p.ask(ctx)
}

// ask asks the old file system, if it may, what only it can tell.
func (p *Plan) ask(ctx context.Context) error {
	if !p.asks() {
		return nil
	}
	if err := p.askUnlinked(ctx); err != nil {
		return err
	}
	return p.askLocks(ctx)
}

// keepStill drops what was not in the way before. Then the plan lacks something, so
// whoever looks next must look at all.
func (p *Plan) keepStill(before []Obstacle) {
	found := len(p.Obstacles)
	if p.Obstacles = still(before, p.Obstacles); len(p.Obstacles) < found {
		p.known.steady = nil
	}
}

// still is those of now that were in the way before, too, and what is no process's:
// mounts don't come and go as descriptors do.
func still(before, now []Obstacle) (list []Obstacle) {
	was := map[Obstacle]bool{}
	for _, o := range before {
		was[o.kind()] = true
	}
	for _, o := range now {
		if o.PID == 0 || was[o.kind()] {
			list = append(list, o)
		}
	}
	return list
}

// kind is o without what may differ from one look to the next and be the same thing:
// the reason (what the kernel says of a file changes when its daemon is asked, so
// that one which is unlinked may look as if it had only been called deleted), and
// that mark behind its name.
func (o Obstacle) kind() Obstacle {
	return Obstacle{PID: o.PID, Resource: strings.TrimSuffix(o.Resource, deletedMark)}
}

// stopAll is [run.stop], at a moment that is right: what is in the way when all are
// stopped may be a moment of a process's life, too. Then all go on, and it is tried
// again; what is in the way twice is. (Not after --abort, from which there is no
// way back.)
func (r *run) stopAll(ctx context.Context) error {
	var before []Obstacle
	for again := false; ; again = true {
		err := r.stop(ctx)
		var refused *RefusedError
		if r.stopped == nil || r.plan.abort || !errors.As(err, &refused) {
			return err
		}
		if twice := still(before, refused.Obstacles); again && len(twice) > 0 {
			return &RefusedError{twice}
		}
		before = refused.Obstacles
		if err := r.letGo(); err != nil {
			return err
		}
	}
}

// letGo lets everyone run again, to be stopped anew.
func (r *run) letGo() error {
	err := r.stopped.releaseAll()
	r.stopped.close()
	r.stopped, r.plan.Stopped = nil, nil
	return err
}
