package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Locked says whether m, which must be visible at its Point in the namespace,
// is locked there: a namespace that belongs to another user namespace than the
// one it was copied from can't lose the mounts that came with the copy
// (MNT_LOCKED, fs/namespace.c lock_mnt_tree), by whomever. No file in /proc
// tells.
//
// It asks umount2 for what can't happen: fs/namespace.c can_umount refuses a
// locked mount with EINVAL before do_umount refuses, with EBUSY, to let a mount
// expire that is in use; and it is in use, since it is held open here.
func (ns *Namespace) Locked(m *Mount) (locked bool, err error) {
	err = ns.Do(func(*os.File) error {
		root, err := Open(m)
		if err != nil {
			return err
		}
		defer root.Close()
		switch err := unix.Unmount(m.Point, unix.MNT_EXPIRE|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EBUSY):
			return nil
		case errors.Is(err, unix.EINVAL):
			locked = true
			return nil
		default:
			return fmt.Errorf("umount2(MNT_EXPIRE): %w", err)
		}
	})
	if err != nil {
		return false, fmt.Errorf("whether %s is locked in %v: %w", m.Point, ns, err)
	}
	return locked, nil
}
