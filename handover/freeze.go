package handover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/freezer"
)

// ice is the cgroup that a tree is frozen in, and the way back.
type ice struct {
	cgroup    *freezer.Cgroup
	temporary bool
	before    map[int]*freezer.Cgroup // where each process was, if temporary
}

// findIce finds a cgroup that holds the tree and nobody else, or makes one. No
// process is moved yet.
func findIce(pids []int) (*ice, error) {
	h, err := freezer.Find()
	if err != nil {
		return nil, err
	}
	i := &ice{before: make(map[int]*freezer.Cgroup)}
	if i.cgroup, err = ownCgroup(h, pids, i.before); err != nil {
		return nil, err
	}
	if i.cgroup != nil {
		i.before = nil
		return i, nil
	}
	i.temporary = true
	if i.cgroup, err = h.Create(temporaryCgroup(pids[0])); err != nil {
		return nil, err
	}
	return i, nil
}

// temporaryCgroup names the cgroup that this process freezes a tree in.
func temporaryCgroup(root int) string { return fmt.Sprintf("spfs-dump-%d-%d", root, os.Getpid()) }

// ownCgroup finds the cgroup that the tree, pids with the root first, has for
// itself; nil if it has none. It puts where each process is into before, if that
// is not nil.
func ownCgroup(h *freezer.Hierarchy, pids []int, before map[int]*freezer.Cgroup) (*freezer.Cgroup, error) {
	var own *freezer.Cgroup
	for _, pid := range pids {
		c, err := h.Of(pid)
		if err != nil {
			return nil, err
		}
		if own == nil {
			own = c
		}
		if before != nil {
			before[pid] = c
		}
	}
	if own.Top() {
		return nil, nil
	}
	members, err := own.Members()
	if err != nil {
		return nil, err
	}
	frozen, err := own.Frozen()
	if err != nil {
		return nil, err
	}
	if frozen {
		return nil, fmt.Errorf("the tree's cgroup %s is frozen: thaw it first", own.Path())
	}
	slices.Sort(members)
	if !slices.Equal(members, slices.Sorted(slices.Values(pids))) {
		return nil, nil
	}
	return own, nil
}

// close takes the tree in and freezes it. Its tasks are stopped.
func (i *ice) close() error {
	if err := i.note(); err != nil {
		return err
	}
	for pid := range i.before {
		if err := i.cgroup.Add(pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return i.cgroup.Freeze()
}

// open thaws the tree and puts its processes back to where they were. It may
// be called whatever has been done.
func (i *ice) open() error {
	errs := []error{i.cgroup.Thaw(), i.cgroup.SetNote(nil)}
	if !i.temporary {
		return errors.Join(errs...)
	}
	// They run, and may have children while they are moved.
	const rounds = 1000
	for range rounds {
		members, err := i.cgroup.Members()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		moved := false
		for _, pid := range members {
			to := i.before[pid]
			if to == nil && len(i.before) > 0 {
				to = i.before[slices.Min(slices.Collect(maps.Keys(i.before)))]
			}
			if to == nil || zombie(pid) {
				continue // who has ended leaves by itself
			}
			err := to.Add(pid)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return errors.Join(append(errs, err)...)
			}
			moved = moved || err == nil
		}
		if !moved {
			break
		}
	}
	return errors.Join(errs...)
}

// removalTime is how long a cgroup is given to be empty: processes that were
// killed leave it when they have ended, not when they are waited for.
const removalTime = 2 * time.Second

// remove removes a temporary cgroup, once nobody is left in it.
func (i *ice) remove() error {
	if !i.temporary {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), removalTime)
	defer cancel()
	for {
		err := i.cgroup.Remove()
		if err == nil || !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond) // v1 has no event for it
	}
}
