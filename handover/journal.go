package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"spfs/internal/devfuse"
	"spfs/internal/freezer"
	"spfs/internal/ptrace"
)

// journal is what is needed to put a tree back that somebody else has stopped
// who died: with the descriptions that it tells of.
type journal struct {
	Root      int
	Cgroup    string
	Temporary bool
	Before    map[int]string // the cgroups of the processes, if Temporary
	Devices   []devfuse.Description

	// files are, for each of Devices, the device and its placeholder.
	files []*os.File
}

func (s *stopper) journal() *journal {
	j := &journal{Root: s.o.Root, Cgroup: s.ice.cgroup.Path(), Temporary: s.ice.temporary, Before: make(map[int]string)}
	for pid, c := range s.ice.before {
		j.Before[pid] = c.Path()
	}
	for _, d := range s.census.devices {
		j.Devices = append(j.Devices, devfuse.Description{Connection: d.Connection, Flags: d.Flags, Holders: d.Holders})
		j.files = append(j.files, d.File(), d.Placeholder())
	}
	return j
}

// close gives the journal's files back, if it was given them.
func (j *journal) close() {
	for _, f := range j.files {
		f.Close()
	}
	j.files = nil
}

// orphanTime bounds how long whoever else traces a tree is waited for, before
// it is put back: CRIU, that has lost who called it.
const orphanTime = 10 * time.Minute

// putBack does what whoever wrote the journal can't any more: the tree may be
// frozen, or not yet, or no more, and a batch may be under way in a daemon that
// nobody waits for. It owns the journal's files.
func (j *journal) putBack() error {
	defer j.close()
	h, err := freezer.Find()
	if err != nil {
		return err
	}
	i := &ice{cgroup: h.Open(j.Cgroup), temporary: j.Temporary, before: make(map[int]*freezer.Cgroup)}
	for pid, path := range j.Before {
		i.before[pid] = h.Open(path)
	}
	var all []*devfuse.Description
	for n := range j.Devices {
		d := &j.Devices[n]
		d.Adopt(j.files[2*n], j.files[2*n+1])
		all = append(all, d)
	}
	tracer := ptrace.New()
	defer tracer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), orphanTime)
	defer cancel()
	return errors.Join(putBackDaemons(ctx, tracer, all, i), i.open(), i.remove())
}

// putBackDaemons gives each daemon its devices back. Nobody else need be
// stopped: what the others ask meanwhile waits for the daemons.
func putBackDaemons(ctx context.Context, tracer *ptrace.Tracer, all []*devfuse.Description, i *ice) error {
	var daemons []int
	for _, d := range all {
		for _, holder := range d.Holders {
			if !slices.Contains(daemons, holder.PID) {
				daemons = append(daemons, holder.PID)
			}
		}
	}
	var errs []error
	for _, pid := range daemons {
		errs = append(errs, putBackDaemon(ctx, tracer, pid, all, i))
	}
	return errors.Join(errs...)
}

// putBackDaemon gives one daemon its devices back.
func putBackDaemon(ctx context.Context, tracer *ptrace.Tracer, pid int, all []*devfuse.Description, i *ice) error {
	const first, last = time.Millisecond, 100 * time.Millisecond
	for pause := first; ; pause = min(2*pause, last) {
		err := func() error {
			ps, err := tracer.SeizeFrozen(ctx, []int{pid}, i.cgroup.Thaw)
			if err != nil {
				return err
			}
			return errors.Join(devfuse.Exchange(ctx, ps[0], all, true), ps[0].Release())
		}()
		var traced *ptrace.TracedError
		switch {
		case err == nil, errors.Is(err, ptrace.ErrGone), zombie(pid):
			return nil
		case ctx.Err() != nil:
		case errors.As(err, &traced), errors.Is(err, ptrace.ErrResidueInUse):
			time.Sleep(pause) // whoever is at work in it will end
			continue
		}
		return fmt.Errorf("giving %s its devices back: %w", describe(pid), err)
	}
}
