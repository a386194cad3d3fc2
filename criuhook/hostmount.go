package criuhook

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

// bindStub mounts a stub at the mount points of the machine's own namespace
// where a tree without one of its own had the file system. What is mounted
// there already, and may be the real file system, is covered by it.
func (r *restore) bindStub(s *stub) error {
	root, err := openPath(s.path)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, m := range s.fs.Mounts {
		clone, err := mounts.Clone(root, string(m.Root)[1:])
		if err == nil {
			err = mounts.SetOptions(clone, string(m.Flags))
			if err == nil {
				err = unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, string(m.Point), unix.MOVE_MOUNT_F_EMPTY_PATH)
			}
			clone.Close()
		}
		if err != nil {
			return fmt.Errorf("mounting a stub on %s, where the tree had %s: %w", m.Point, s.fs.Type, err)
		}
		r.bound = append(r.bound, string(m.Point))
	}
	return nil
}
