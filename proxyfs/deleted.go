package proxyfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Deleted takes the name from the node at path, as if its file had been deleted
// while it is open, and puts another file in the place of the one that it is of:
// file, which may be O_PATH. Its handles get those of open that were opened for
// the same access, each its own; what is left of them opens file by itself when
// it is used. The descriptors are f's from now on, also if it fails: to close one
// of a FUSE file asks its daemon (fs/fuse/file.c fuse_flush), which may not run
// yet. That is done by the next Retarget, or by Close.
//
// It returns the node, 0 if nobody uses one of that path, and the name in which
// directory it had, for the kernel to be told. No request may be in flight.
func (f *FS) Deleted(path string, file *os.File, open []*os.File) (node, parent uint64, base string, err error) {
	f.park(append([]*os.File{file}, open...))
	n := f.nodeAt(path)
	if n == nil {
		return 0, 0, "", nil
	}
	// What is behind file is asked nothing: it may not answer yet.
	var stx unix.Statx_t
	err = unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &stx)
	if err != nil {
		return 0, 0, "", fmt.Errorf("%s: statx of what is to be in its place: %w", path, err)
	}
	if typ := uint32(stx.Mode) & unix.S_IFMT; typ != n.typ || typ == unix.S_IFDIR {
		return 0, 0, "", fmt.Errorf("%s: a file of type %#o can't be in place of one of type %#o", path, typ, n.typ)
	}
	fd, err := duplicate(file)
	if err != nil {
		return 0, 0, "", fmt.Errorf("%s: %w", path, err)
	}
	if err := f.exchangeHandles(n, open); err != nil {
		unix.Close(fd)
		return 0, 0, "", fmt.Errorf("%s: %w", path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	last := n.names[len(n.names)-1]
	if n.fd >= 0 {
		unix.Close(n.fd)
	} else {
		f.open++
	}
	f.forgetFileLocked(n)
	n.fd, n.file = fd, fileID{unix.Mkdev(stx.Dev_major, stx.Dev_minor), stx.Ino}
	n.proof, n.gone, n.tries = nil, false, 0
	f.byFile[n.file] = n
	f.keepLocked(n)
	return n.id, last.parent.id, last.base, nil
}

// park keeps files open until the next Retarget.
func (f *FS) park(files []*os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parked = append(f.parked, files...)
}

// unpark closes what was parked.
func (f *FS) unpark() {
	f.mu.Lock()
	files := f.parked
	f.parked = nil
	f.mu.Unlock()
	for _, file := range files {
		file.Close() // an answer of its daemon's to FLUSH is not for us
	}
}

// nodeAt is the node that was last seen at path, below the root.
func (f *FS) nodeAt(path string) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n == f.root || n.lookups == 0 {
			continue
		}
		if p, ok := f.pathLocked(n); ok && p == path {
			return n
		}
	}
	return nil
}

// exchangeHandles gives the handles of n other descriptors: those of open that
// fit, and else none.
func (f *FS) exchangeHandles(n *node, open []*os.File) error {
	free := append([]*os.File(nil), open...)
	for _, h := range f.allHandles() {
		if h.node != n {
			continue
		}
		fd := -1
		for i, file := range free {
			flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
			if err != nil {
				return fmt.Errorf("what %s is open for: %w", file.Name(), err)
			}
			if (flags^h.flags)&unix.O_ACCMODE != 0 {
				continue
			}
			if fd, err = duplicate(file); err != nil {
				return err
			}
			free = append(free[:i], free[i+1:]...)
			break
		}
		h.mu.Lock()
		if old := h.fd.Swap(int32(fd)); old >= 0 {
			unix.Close(int(old))
		}
		h.mu.Unlock()
	}
	return nil
}

func duplicate(f *os.File) (int, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("a descriptor more of %s: %w", f.Name(), err)
	}
	return fd, nil
}
