package daemon

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"spfs/internal/control"
	"spfs/internal/privilege"
)

// fsType is the type of our mounts in mountinfo.
const fsType = "fuse.spfs"

// Umount takes the mount at path away through its daemon, which ends; or by
// itself if the daemon is dead. A mount in use stays, and is an error, unless
// force.
func Umount(ctx context.Context, path string, force bool) error {
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	m, err := control.MountAt(path)
	if err != nil {
		return err
	}
	dev := unix.Mkdev(uint32(m.Major), uint32(m.Minor))
	c, err := control.Dial(dev)
	if errors.Is(err, control.ErrNotServed) && m.FSType == fsType {
		if err := umountDead(m.Mountpoint, force); err != nil {
			return err
		}
		return control.RemoveStale(dev)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer c.Close()
	if force {
		return c.ForceShutdown(ctx)
	}
	return c.Shutdown(ctx)
}

func umountDead(point string, force bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if force {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(point, flags); err != nil {
		return fmt.Errorf("unmounting %s, whose daemon is gone: %w", point, err)
	}
	return nil
}
