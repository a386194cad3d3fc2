package swap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// inodeID tells the kernel's inodes of one file system apart. It is the file
// handle that FUSE makes of an inode, its number and generation
// (fs/fuse/inode.c fuse_encode_fh), and asks no daemon for; the inode number
// that fdinfo shows may be whatever the daemon says.
type inodeID string

// inodeOf returns the inode that a magic link in /proc leads to.
func inodeOf(link string) (inodeID, error) {
	// O_PATH opens nothing, and what is closed after flushes nothing.
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("hold %s: %w", link, err)
	}
	defer unix.Close(fd)
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Not a FUSE file, all of which have one: the number is a pipe's or a
		// socket's by now.
		return "", fmt.Errorf("hold %s: %w", link, unix.ENOENT)
	}
	if err != nil {
		return "", fmt.Errorf("the file handle of %s: %w", link, err)
	}
	return inodeID(fmt.Sprintf("%d:%x", handle.Type(), handle.Bytes())), nil
}

// link is where the descriptor is in /proc.
func (r FDRef) link() string {
	return fmt.Sprintf("/proc/%d/task/%d/fd/%d", r.PID, r.TID, r.FD)
}

// link is where the mapping is in /proc, for a task of its address space.
func (m *Mapping) link(pid int) string {
	return fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
}
