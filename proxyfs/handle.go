package proxyfs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory.
type handle struct {
	id    uint64
	node  *node
	flags int          // to open it again
	fd    atomic.Int32 // -1: not yet opened in this directory

	mu    sync.Mutex // guards opening, and what follows
	list  *listing   // of a directory
	flock int16      // F_RDLCK, F_WRLCK or F_UNLCK: what flock(2) holds
}

// keptFlags are the flags of open(2) that mean something to the file below.
// Not among them: O_APPEND (see Writev), and O_DIRECT: the kernel forwards
// such reads and writes uncached by itself, in whatever buffer they come here,
// and the file below would want them aligned.
const keptFlags = unix.O_ACCMODE | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME

// add makes fd a new handle of n, which is pinned.
func (f *FS) add(n *node, fd int, flags uint32) *handle {
	h := &handle{id: f.lastHandle.Add(1), node: n, flags: int(flags) & keptFlags, flock: unix.F_UNLCK}
	h.fd.Store(int32(fd))
	f.mu.Lock()
	n.handles++
	f.mu.Unlock()
	f.handlesMu.Lock()
	f.handles[h.id] = h
	f.handlesMu.Unlock()
	return h
}

func (f *FS) handle(id uint64) *handle {
	f.handlesMu.RLock()
	defer f.handlesMu.RUnlock()
	return f.handles[id]
}

// file returns the handle with the given id and its descriptor, which stays
// open until it is released.
func (f *FS) file(id uint64) (*handle, int, error) {
	h := f.handle(id)
	if h == nil {
		return nil, -1, unix.EBADF
	}
	fd, err := f.handleFD(h)
	return h, fd, err
}

// handleFD returns h's descriptor, opening it first if the directory is
// another one than it was opened in.
func (f *FS) handleFD(h *handle) (int, error) {
	if fd := h.fd.Load(); fd >= 0 {
		return int(fd), nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return f.handleFDLocked(h)
}

func (f *FS) handleFDLocked(h *handle) (int, error) {
	if fd := h.fd.Load(); fd >= 0 {
		return int(fd), nil
	}
	f.mu.Lock()
	nodeFD, err := f.useLocked(h.node)
	f.mu.Unlock()
	if err != nil {
		return -1, err
	}
	defer f.done(h.node)
	fd, err := f.withDescriptor(func() (int, error) { return reopen(nodeFD, h.flags) })
	if err != nil {
		return -1, err
	}
	h.fd.Store(int32(fd))
	return fd, nil
}

// release forgets a handle; its descriptor is closed, and with it goes what
// flock(2) held.
func (f *FS) release(id uint64) {
	f.handlesMu.Lock()
	h := f.handles[id]
	delete(f.handles, id)
	f.handlesMu.Unlock()
	if h == nil {
		return
	}
	if fd := h.fd.Swap(-1); fd >= 0 {
		unix.Close(int(fd))
	}
	h.node.locks.released(id)
	f.mu.Lock()
	h.node.handles--
	f.freeLocked(h.node)
	f.mu.Unlock()
}
