package proxyfs

import (
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// LostLock is a lock that a program believes to hold, but could not be taken
// again in the present directory.
type LostLock struct {
	Node  uint64
	Path  string // as Path has it
	Flock bool   // by flock(2); else by fcntl(2), and the following count
	PID   uint32 // of the process that took it, in the daemon's pid namespace
	Type  int16  // F_RDLCK or F_WRLCK
	Start uint64 // first byte
	End   uint64 // last byte; math.MaxInt64: to the end
	Err   error  // why: ESTALE if the file is not there, EAGAIN if another has locked it
}

func (l LostLock) String() string {
	kind := "read"
	if l.Type == unix.F_WRLCK {
		kind = "write"
	}
	if l.Flock {
		return fmt.Sprintf("%s: %s lock (flock): %v", l.Path, kind, l.Err)
	}
	return fmt.Sprintf("%s: %s lock of process %d on bytes %d to %d: %v", l.Path, kind, l.PID, l.Start, l.End, l.Err)
}

// LostLocks returns the locks that the last Retarget could not take again. They
// are tried again by the next one.
func (f *FS) LostLocks() []LostLock {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// closeTimeout is how long Retarget waits for the file system it leaves to
// close files. One that answers nothing any more (a FUSE daemon that is
// stopped) must not keep the next from being used.
const closeTimeout = 5 * time.Second

// Retarget shows dir, which stays the caller's, in place of the directory
// shown so far. No request may be in flight. If it fails, nothing has changed.
//
// The kernel's node ids and file handles stay valid and are found again by
// name, at their first use. Files that are open but deleted stay what they
// are, and are the only descriptors kept on the former file system; the others
// are closed when Retarget returns, unless that file system has stopped
// answering, in which case they are being closed.
//
// Locks are taken again here, as nobody else may get them first; those that
// can't be don't make Retarget fail, see LostLocks.
func (f *FS) Retarget(dir *os.File) error {
	links := f.rootLinks()
	if err := f.setRoot(dir); err != nil {
		return err
	}
	fds := append(f.leave(links), f.leaveHandles()...)

	closed := make(chan struct{})
	go func() {
		f.unpark()
		closeAll(fds) // their errors were due when programs closed or synced
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
	lost := f.lockAgain()
	f.mu.Lock()
	f.lost = lost
	f.mu.Unlock()
	return nil
}

// rootLinks is linkCount of the root.
func (f *FS) rootLinks() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return linkCount(f.root.fd)
}

// linkCount returns the number of names of fd's file as far as known without a
// request to a remote file system, or -1.
func linkCount(fd int) int64 {
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_NLINK, &stx)
	if err != nil || stx.Mask&unix.STATX_NLINK == 0 {
		return -1
	}
	return int64(stx.Nlink)
}

// leave makes all nodes those of a new directory and returns the descriptors
// to be closed. links is the former root's link count: where that is 0, the
// file system does not count links.
func (f *FS) leave(links int64) (fds []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	f.root.epoch = f.epoch
	for _, n := range f.nodes {
		if n == f.root {
			continue
		}
		if n.fd >= 0 && (n.unlinked || links != 0 && linkCount(n.fd) == 0) {
			f.keepLocked(n)
			continue
		}
		if n.fd >= 0 {
			fds = append(fds, n.fd)
			f.open--
		}
		f.forgetFileLocked(n)
		n.fd, n.proof, n.gone, n.tries = -1, nil, false, 0
		fds = append(fds, n.locks.closeAll()...)
	}
	return fds
}

// leaveHandles does for the handles what leave, called before, does for nodes.
func (f *FS) leaveHandles() (fds []int) {
	for _, h := range f.allHandles() {
		f.mu.Lock()
		kept := h.node != f.root && h.node.epoch == f.epoch
		f.mu.Unlock()
		if kept { // deleted
			continue
		}
		h.mu.Lock()
		if fd := h.fd.Swap(-1); fd >= 0 {
			fds = append(fds, int(fd))
		}
		if h.list != nil {
			h.list.reread = true
		}
		h.mu.Unlock()
	}
	return fds
}

func (f *FS) allHandles() map[uint64]*handle {
	f.handlesMu.RLock()
	defer f.handlesMu.RUnlock()
	return maps.Clone(f.handles)
}

// keepLocked makes n, which was deleted, a node of this directory too.
func (f *FS) keepLocked(n *node) {
	n.epoch, n.unlinked = f.epoch, true
	for len(n.names) > 0 { // deleted behind the mount
		nm := n.names[0]
		n.names = n.names[1:]
		unhook(n, nm)
		f.freeLocked(nm.parent)
	}
}

// lockAgain takes every lock again and returns those that could not be.
func (f *FS) lockAgain() (lost []LostLock) {
	handles := f.allHandles()
	locked := make(map[*node]bool)
	for _, h := range handles {
		if !h.node.locks.empty() {
			locked[h.node] = true
		}
	}
	for n := range locked {
		lost = append(lost, f.rangesAgain(n, handles)...)
	}
	for _, h := range handles {
		if typ, err := f.flockAgain(h); err != nil {
			lost = append(lost, LostLock{Node: h.node.id, Path: f.Path(h.node.id), Flock: true, Type: typ, Err: err})
		}
	}
	return lost
}

// rangesAgain takes the record locks on n again.
func (f *FS) rangesAgain(n *node, handles map[uint64]*handle) (lost []LostLock) {
	t := &n.locks
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		if o.fd >= 0 {
			continue // of a deleted file, which was kept
		}
		err := error(unix.ESTALE)
		for id := range o.handles {
			if h := handles[id]; h != nil {
				o.fd, err = f.openForLocks(h)
				break
			}
		}
		for _, r := range o.ranges {
			rangeErr := err
			if o.fd >= 0 {
				fl := r.flock()
				rangeErr = eintr.Retry(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &fl) })
			}
			if rangeErr != nil {
				lost = append(lost, LostLock{
					Node: n.id, Path: f.Path(n.id), PID: o.pid,
					Type: r.typ, Start: r.start, End: r.end, Err: rangeErr,
				})
			}
		}
	}
	return lost
}

// flockAgain takes again what h holds by flock(2), and says what that is.
func (f *FS) flockAgain(h *handle) (int16, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.flock == unix.F_UNLCK || h.fd.Load() >= 0 {
		return h.flock, nil
	}
	fd, err := f.handleFDLocked(h)
	if err != nil {
		return h.flock, err
	}
	how := unix.LOCK_SH
	if h.flock == unix.F_WRLCK {
		how = unix.LOCK_EX
	}
	return h.flock, eintr.Retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
}
