package swap

import (
	"errors"
	"fmt"
	"os"

	"spfs/internal/fault"
	"spfs/internal/mounts"
)

// changesMounts says whether the run is to change mount points.
func (r *run) changesMounts() bool { return r.plan.Scope.Everyone() && r.plan.known.left == nil }

// checkMounts sees whether every mount point can be changed: the old mount
// must still be what a walk there ends on. It is the last thing before the
// verdict, as changing them is the first after it. So what is decided is
// decided by the verdict alone, and a run that goes back has no mount point to
// put back.
func (r *run) checkMounts() error {
	if !r.changesMounts() {
		return nil
	}
	tables := map[uint64]mounts.Table{}
	var err error
	if r.old, err = mounts.Open(r.plan.From.Mount); err != nil {
		return err
	}
	for _, m := range r.plan.Usage.Mounts {
		table := tables[m.Namespace.Inode]
		if table == nil {
			if table, err = m.Namespace.Mounts(); err != nil {
				return err
			}
			tables[m.Namespace.Inode] = table
		}
		if top := table.Top(m.Point); top == nil || top.ID != m.ID {
			return fmt.Errorf("the mount point %s in %v: another mount covers it, or took its place", m.Point, m.Namespace)
		}
	}
	return nil
}

// changeMounts puts the new mount at every mount point of the old one, unless
// only some of its users are swapped. Nobody who could notice runs yet.
func (r *run) changeMounts() error {
	if !r.changesMounts() {
		return nil
	}
	var errs []error
	for _, m := range r.plan.Usage.Mounts {
		if err := m.Namespace.Attach(m.Replacement, m.Info); err != nil {
			errs = append(errs, err)
			continue
		}
		r.result.Mounts++
		fault.Point("mount point changed")
	}
	return errors.Join(errs...)
}

// changeLateMounts does it for copies that were made meanwhile.
func (r *run) changeLateMounts() error {
	if !r.changesMounts() {
		return nil
	}
	ctx, cancel := graceful()
	defer cancel()
	n, err := changeLate(ctx, r.plan.From.Mount.Dev, func(m *mounts.Mount) (*os.File, error) {
		return cloneFor(m, r.plan.opener.to, r.plan.From.Mount.Root)
	})
	r.result.Mounts += n
	return err
}

// kept is what is given to Options.Keep: the journal, the verdict, the old mount,
// then the new ones in the order of the journal.
func (r *run) kept() []*os.File {
	if !r.changesMounts() {
		return []*os.File{r.journal.dir, r.verdict.file}
	}
	byID := map[int]*os.File{}
	for _, m := range r.plan.Usage.Mounts {
		byID[m.ID] = m.Replacement
	}
	files := []*os.File{r.journal.dir, r.verdict.file, r.old}
	for _, m := range r.journal.written.Mounts {
		files = append(files, byID[m.ID])
	}
	return files
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
