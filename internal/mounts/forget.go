package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Forget makes the kernel forget the names that it knows of the FUSE file system
// whose root is given, except those of files that somebody has open and of the
// directories above them: it asks for them again. What is dirty there is written
// back, so this waits for the daemon.
//
// It reconfigures the file system, and changes nothing: fs/super.c,
// reconfigure_super shrinks the file system's part of the dentry cache, and
// fs/fuse/inode.c, fuse_reconfigure does nothing but write back.
func Forget(root *os.File) error {
	fd, err := unix.Fspick(int(root.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fspick %s: %w", root.Name(), err)
	}
	defer unix.Close(fd)
	if err := eintr.Retry(func() error { return unix.FsconfigReconfigure(fd) }); err != nil {
		return fmt.Errorf("reconfigure %s: %w", root.Name(), err)
	}
	return nil
}
