package mounts

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/thread"
)

// Handle names an inode of a file system that somebody keeps in memory: as
// name_to_handle_at(2) gives it, or the text of a watch in fdinfo.
type Handle struct {
	Type  int32
	Bytes string
}

// Handled is what a handle led to.
type Handled struct {
	File *os.File // O_PATH; the caller closes it
	Path string   // from the file system's root
	Err  error    // why there is none
}

// ErrNoPath says that the kernel remembers no name of an inode.
var ErrNoPath = errors.New("the kernel knows no path to it")

// OpenByHandle opens files of m's file system by their handles, as O_PATH, and
// tells their paths. m must show all of the file system.
//
// A file system whose inodes are all in memory, and have names there, is not
// asked anything (fs/fuse/inode.c fuse_get_dentry). But open_by_handle_at(2)
// does not take an O_PATH descriptor for the mount, and to open or to enter a
// FUSE directory asks its daemon. So a thread makes itself a mount namespace
// whose root the file system is: setns(2) takes a thread there, and asks
// nobody (fs/namespace.c mntns_install).
func OpenByHandle(m *Mount, handles []Handle) ([]Handled, error) {
	if m.Root != "/" {
		return nil, fmt.Errorf("the mount at %s shows only %s", m.Point, m.Root)
	}
	links, err := os.OpenFile("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer links.Close()
	root, err := Open(m)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	tree, err := Clone(root, "")
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	own, err := Own()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	var found []Handled
	err = thread.Run(func() error {
		// The thread ends some time after this returns. Nobody is to find it in
		// that namespace, which goes when it leaves.
		defer unix.Setns(int(own.File.Fd()), unix.CLONE_NEWNS)
		if err := enter(tree); err != nil {
			return fmt.Errorf("a namespace for the mount at %s: %w", m.Point, err)
		}
		for _, h := range handles {
			found = append(found, openHandle(h, root, links))
		}
		return nil
	})
	return found, err
}

// enter makes a detached tree the calling thread's root and working directory.
func enter(tree *os.File) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making it private: %w", err)
	}
	ns, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// openHandle opens h where the thread's root is that of the file system.
func openHandle(h Handle, root, links *os.File) Handled {
	handle := unix.NewFileHandle(h.Type, []byte(h.Bytes))
	fd, err := eintr.Get(func() (int, error) {
		return unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_PATH|unix.O_CLOEXEC)
	})
	if err != nil {
		return Handled{Err: fmt.Errorf("open_by_handle_at: %w", err)}
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(links.Fd()), strconv.Itoa(fd), buf)
	path := string(buf[:max(n, 0)])
	switch {
	case err != nil:
	case path == "/" && !sameInode(fd, int(root.Fd())), !strings.HasPrefix(path, "/"), len(path) == len(buf):
		// What has no name is called "/" (fs/dcache.c d_alloc_anon).
		err = ErrNoPath
	}
	if err != nil {
		unix.Close(fd)
		return Handled{Err: err}
	}
	return Handled{File: os.NewFile(uintptr(fd), path), Path: path}
}

// sameInode asks no file system.
func sameInode(a, b int) bool {
	var x, y unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_INO
	const how = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	err := errors.Join(unix.Statx(a, "", how, mask, &x), unix.Statx(b, "", how, mask, &y))
	return err == nil && x.Ino == y.Ino && x.Mode == y.Mode
}
