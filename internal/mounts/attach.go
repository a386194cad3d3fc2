package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
)

// moveBeneath is MOVE_MOUNT_BENEATH of include/uapi/linux/mount.h (Linux 6.5).
const moveBeneath = 0x200

// Attach puts the detached mount clone in the place of old in the namespace,
// and detaches old (umount2(MNT_DETACH): who still holds it keeps it). The
// clone is mounted beneath old first, so that a process walking there never
// finds neither; kernels before 6.5 leave a gap of two system calls.
//
// Exactly this one mount point changes. Were old's parent shared, the clone
// would appear, and old's peers disappear, in every namespace that the parent
// propagates to; so the parent leaves its peer group for the time of the two
// calls, while a detached clone of it keeps its place in the group. A shared
// old makes a shared clone, in a group of its own.
//
// On failure nothing has changed, save where the error says so.
func (ns *Namespace) Attach(clone *os.File, old *Mount) error {
	err := ns.Do(func(proc *os.File) error {
		table, err := threadMounts(proc)
		if err != nil {
			return err
		}
		now := table.Top(old.Point)
		if now == nil || now.ID != old.ID {
			return fmt.Errorf("mount %d is not on top there (any more)", old.ID)
		}
		restore, err := table.isolate(now)
		if err != nil {
			return err
		}
		fault.Point("mounts: parent isolated")
		return errors.Join(replaceTop(clone, old.Point), restore())
	})
	if err != nil {
		return fmt.Errorf("attach at %s in %v: %w", old.Point, ns, err)
	}
	if old.Shared != 0 {
		if err := ns.Share(clone); err != nil {
			return fmt.Errorf("attached at %s in %v, but not shared as the old mount was: %w", old.Point, ns, err)
		}
	}
	return nil
}

// replaceTop exchanges what is on top at point for the mount clone.
func replaceTop(clone *os.File, point string) error {
	err := moveMount(clone, point, moveBeneath)
	if errors.Is(err, unix.EINVAL) && !canMoveBeneath() {
		return replaceWithGap(clone, point)
	}
	if err != nil {
		return fmt.Errorf("move_mount beneath: %w", err)
	}
	fault.Point("mounts: new beneath")
	// Of the two, umount2 takes the upper one, as any walk ends there.
	if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("umount of the old mount, which is still above the new one: %w", err)
	}
	fault.Point("mounts: old off")
	return nil
}

func replaceWithGap(clone *os.File, point string) error {
	if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("umount of the old mount: %w", err)
	}
	fault.Point("mounts: gap")
	if err := moveMount(clone, point, 0); err != nil {
		return fmt.Errorf("the old mount is off, but move_mount of the new one: %w", err)
	}
	return nil
}

func moveMount(clone *os.File, point string, flags int) error {
	return unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH|flags)
}

// canMoveBeneath asks the kernel whether it knows MOVE_MOUNT_BENEATH: an
// unknown flag is EINVAL before any descriptor is looked at (fs/namespace.c
// SYSCALL_DEFINE5(move_mount)), a known one goes on to EBADF.
func canMoveBeneath() bool {
	err := unix.MoveMount(-1, "", -1, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|moveBeneath)
	return !errors.Is(err, unix.EINVAL)
}

// isolate takes m's parent out of its peer group until the returned function
// is called. The calling thread must be in the namespace of the table.
func (t Table) isolate(m *Mount) (restore func() error, err error) {
	parent := t.ByID(m.Parent)
	if parent == nil || parent.Shared == 0 {
		return func() error { return nil }, nil
	}
	// The parent's root can be reached only where no other mount covers it;
	// any place inside it will do for the clone that holds the group (a clone
	// of a part is a peer too: fs/namespace.c clone_mnt), but only a mount's
	// root takes a change of propagation.
	fd, err := unix.Open(parent.Point, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s, on which it is mounted: %w", parent.Point, err)
	}
	root := os.NewFile(uintptr(fd), parent.Point)
	if id, err := mountID(fd); err != nil || id != parent.ID {
		root.Close()
		return nil, fmt.Errorf("%s, on which it is mounted, is shared and covered by another mount (%v)", parent.Point, err)
	}
	holder, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("hold the peer group of %s: open_tree: %w", parent.Point, err)
	}
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &private); err != nil {
		unix.Close(holder)
		root.Close()
		return nil, fmt.Errorf("take %s out of its peer group: mount_setattr: %w", parent.Point, err)
	}
	return func() error {
		defer root.Close()
		defer unix.Close(holder)
		// fs/namespace.c do_set_group: the target must be private, the source
		// mounted (a detached clone is, in a namespace of its own), both on
		// the same superblock.
		err := unix.MoveMount(holder, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|unix.MOVE_MOUNT_SET_GROUP)
		if err != nil {
			return fmt.Errorf("bring %s back into its peer group: move_mount: %w", parent.Point, err)
		}
		return nil
	}, nil
}

// Open opens the root of m, as the function [Open] does, in the namespace.
func (ns *Namespace) Open(m *Mount) (root *os.File, err error) {
	err = ns.Do(func(*os.File) (err error) {
		root, err = Open(m)
		return err
	})
	return root, err
}

// Share makes the attached mount that root is open on shared, in a peer group
// of its own unless it is in one already.
func (ns *Namespace) Share(root *os.File) error {
	return ns.Do(func(*os.File) error {
		shared := unix.MountAttr{Propagation: unix.MS_SHARED}
		return unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, &shared)
	})
}

// Detach takes m, which must be visible at its Point in the namespace, off
// there and nowhere else. Who still holds it keeps it.
func (ns *Namespace) Detach(m *Mount) error {
	err := ns.Do(func(proc *os.File) error {
		table, err := threadMounts(proc)
		if err != nil {
			return err
		}
		now := table.Top(m.Point)
		if now == nil || now.ID != m.ID {
			return fmt.Errorf("mount %d is not on top there (any more)", m.ID)
		}
		restore, err := table.isolate(now)
		if err != nil {
			return err
		}
		return errors.Join(unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), restore())
	})
	if err != nil {
		return fmt.Errorf("detach %s in %v: %w", m.Point, ns, err)
	}
	return nil
}
