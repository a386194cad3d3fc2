package swap

import (
	"errors"
	"fmt"
	"os"

	"spfs/internal/mounts"
)

// changedMount is a mount point that shows the new file system, and a clone of
// the old mount, to go back with.
type changedMount struct {
	mount *Mount
	old   *os.File
}

// changeMounts puts the new mount at every mount point of the old one, unless
// only some of its users are swapped.
func (r *run) changeMounts() error {
	if !r.plan.Scope.Everyone() {
		return nil
	}
	for _, m := range r.plan.Usage.Mounts {
		var old *os.File
		err := m.Namespace.Do(func(*os.File) error {
			root, err := mounts.Open(m.Info)
			if err != nil {
				return err
			}
			defer root.Close()
			old, err = mounts.Clone(root, "")
			return err
		})
		if err != nil {
			return fmt.Errorf("holding the old mount at %s in %v: %w", m.Point, m.Namespace, err)
		}
		if err := m.Namespace.Attach(m.Replacement, m.Info); err != nil {
			old.Close()
			return err
		}
		r.changed = append(r.changed, changedMount{m, old})
	}
	return nil
}

// restoreMounts puts the old mount back where it was, the last first.
func (r *run) restoreMounts() error {
	var errs []error
	for i := len(r.changed) - 1; i >= 0; i-- {
		c := r.changed[i]
		if err := c.restore(); err != nil {
			errs = append(errs, fmt.Errorf("putting the old mount back at %s in %v: %w", c.mount.Point, c.mount.Namespace, err))
		}
	}
	r.dropOldMounts()
	return errors.Join(errs...)
}

func (c *changedMount) restore() error {
	table, err := c.mount.Namespace.Mounts()
	if err != nil {
		return err
	}
	now := table.Top(c.mount.Point)
	if now == nil {
		return errors.New("the new mount is no longer there")
	}
	return c.mount.Namespace.Attach(c.old, now)
}

func (r *run) dropOldMounts() {
	for _, c := range r.changed {
		c.old.Close()
	}
	r.changed = nil
}

// detachTo takes the new mount off the place where the user mounted it.
func (r *run) detachTo() error {
	own, err := mounts.Own()
	if err != nil {
		return err
	}
	defer own.Close()
	return own.Detach(r.plan.To.Mount)
}
