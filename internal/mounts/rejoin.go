package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Rejoin brings mount id of the namespace, which has been taken out of its peer
// group for an [Namespace.Attach] that was cut off, back into that group: by
// any of namespaces that has a member of it. If there is none, the group has no
// one left to receive or send anything, and the mount becomes the first of a
// new one. It reports whether there was anything to do.
func (ns *Namespace) Rejoin(id, group int, namespaces []*Namespace) (bool, error) {
	table, err := ns.Mounts()
	if err != nil {
		return false, err
	}
	m := table.ByID(id)
	if m == nil || m.Shared != 0 {
		return false, nil
	}
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("bring %s in %v back into peer group %d: %w", m.Point, ns, group, err)
	}
	root, err := ns.Open(m)
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	for _, other := range namespaces {
		table, err := other.Mounts()
		if err != nil {
			continue // gone, or of no use
		}
		for _, peer := range table {
			if peer.Shared != group || peer.Dev != m.Dev || peer.ID == id {
				continue
			}
			from, err := other.Open(peer)
			if err != nil {
				continue // covered: another may not be
			}
			// As in isolate.
			err = unix.MoveMount(int(from.Fd()), "", int(root.Fd()), "",
				unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|unix.MOVE_MOUNT_SET_GROUP)
			from.Close()
			if err == nil {
				return true, nil
			}
			if !errors.Is(err, unix.EINVAL) { // it shows less of the file system
				return fail(fmt.Errorf("move_mount: %w", err))
			}
		}
	}
	if err := ns.Share(root); err != nil {
		return fail(err)
	}
	return true, nil
}
