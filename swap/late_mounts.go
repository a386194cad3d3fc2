package swap

import (
	"context"
	"errors"
	"fmt"
	"os"

	"spfs/internal/mounts"
)

// changeLate puts the new mount where the old one has come to while the others
// were being changed: a namespace that is made copies what another one has at
// that moment. Each round can only find copies of what the round before has
// changed too late, so it comes to an end. clone makes the new mount's part for
// an old one. It returns how many there were.
func changeLate(ctx context.Context, dev uint64, clone func(*mounts.Mount) (*os.File, error)) (changed int, err error) {
	for {
		n, err := changeOnce(ctx, dev, clone)
		changed += n
		if n == 0 || err != nil {
			return changed, err
		}
	}
}

func changeOnce(ctx context.Context, dev uint64, clone func(*mounts.Mount) (*os.File, error)) (changed int, err error) {
	namespaces, err := mounts.List(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, ns := range namespaces {
		table, err := ns.Mounts()
		if err != nil {
			table = nil // it is gone
		}
		for _, m := range table {
			if m.Dev != dev || table.Top(m.Point) != m {
				continue
			}
			if err := attachLate(ns, m, clone); err != nil {
				errs = append(errs, fmt.Errorf("a mount of the old file system appeared at %s in %v meanwhile: %w", m.Point, ns, err))
				continue
			}
			changed++
		}
		ns.Close()
	}
	return changed, errors.Join(errs...)
}

func attachLate(ns *mounts.Namespace, m *mounts.Mount, clone func(*mounts.Mount) (*os.File, error)) error {
	locked, err := ns.Locked(m)
	if err != nil {
		return err
	}
	if locked {
		return errLocked
	}
	c, err := clone(m)
	if err != nil {
		return err
	}
	defer c.Close()
	return ns.Attach(c, m)
}
