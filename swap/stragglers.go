package swap

import (
	"context"
	"fmt"
)

// swapStragglers swaps those who have come to the old file system between the last
// look and the change of its mount points, by a path there: they ran, since they had
// nothing of it before. From now on nobody comes to it but from one who is there, so
// a run for them, which does the same at its end, finds fewer each time.
//
// A dead file system lets nobody in.
func (r *run) swapStragglers() error {
	r.phase("looking who came at the last moment")
	ctx, cancel := context.WithTimeout(context.Background(), r.options.Timeout)
	defer cancel()
	p := &Plan{
		From: r.plan.From, To: r.plan.To, Scope: r.plan.Scope,
		AskOld: r.plan.AskOld, acceptLoss: r.plan.acceptLoss,
		known: &knowledge{left: r.plan.Usage.Mounts},
	}
	defer p.Close()
	var err error
	if p.opener, err = newOpener(p); err != nil {
		return err
	}
	// They are attached by now, and so /proc shows the paths that it always showed.
	p.opener.clones, r.plan.opener.clones = r.plan.opener.clones, nil
	if err := p.look(ctx, true); err != nil {
		return fmt.Errorf("looking who came to the old file system at the last moment: %w", err)
	}
	if len(p.Usage.Processes)+len(p.Obstacles) == 0 {
		return nil
	}
	late, err := p.Run(ctx, Options{Timeout: r.options.Timeout, Progress: r.options.Progress, Trace: r.options.Trace})
	if err != nil {
		return fmt.Errorf("who came to the old file system at the last moment keeps it: %w", err)
	}
	r.result.add(late)
	return nil
}

// add counts in what a run for stragglers did.
func (r *Result) add(late *Result) {
	r.Processes += late.Processes
	r.Threads += late.Threads
	r.FDs += late.FDs
	r.Mappings += late.Mappings
	r.Cwds += late.Cwds
	r.Roots += late.Roots
	r.StoppedUS = max(r.StoppedUS, late.StoppedUS)
}
