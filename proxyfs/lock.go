package proxyfs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// GetLk tells who keeps a lock from being taken. The process is known if it
// locked through this mount, or holds a POSIX lock on the file below.
func (f *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h, fd, err := f.file(in.Fh)
	if err != nil {
		return status(err)
	}
	r := rangeOf(&in.Lk)
	if own := h.node.locks.description(in.Owner); own >= 0 {
		fd = own // its own locks are not in its way
	}
	fl := r.flock()
	if err := eintr.Retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &fl) }); err != nil {
		return status(err)
	}
	out.Lk = fuse.FileLock{Typ: uint32(fl.Type)}
	if fl.Type == unix.F_UNLCK {
		return fuse.OK
	}
	out.Lk.Start, out.Lk.End = uint64(fl.Start), maxEnd
	if fl.Len > 0 {
		out.Lk.End = uint64(fl.Start + fl.Len - 1)
	}
	if fl.Pid > 0 {
		out.Lk.Pid = uint32(fl.Pid)
	} else {
		out.Lk.Pid = h.node.locks.conflict(in.Owner, lockRange{out.Lk.Start, out.Lk.End, unix.F_WRLCK})
	}
	return fuse.OK
}

func rangeOf(lk *fuse.FileLock) lockRange {
	return lockRange{lk.Start, lk.End, int16(lk.Typ)}
}

// SetLk takes or releases a lock, and does not wait for it.
func (f *FS) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return status(f.setLock(in))
}

// lockPoll bounds how long a lock can be free below before who waits for it
// notices, if it was not freed through this mount.
const (
	lockPollFirst = time.Millisecond
	lockPollMost  = 50 * time.Millisecond
)

// SetLkw takes a lock, and waits for it as long as it takes or until it is
// cancelled: EINTR, and the lock is not taken; the same request may then be
// made again. It waits without a thread in the kernel, which a process has
// but 10,000 of: what is unlocked through this mount wakes it, what is
// unlocked below it finds by looking again. Deadlocks are not detected.
func (f *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	poll := lockPollFirst
	timer := time.NewTimer(poll)
	defer timer.Stop()
	for {
		h := f.handle(in.Fh)
		if h == nil {
			return fuse.EBADF
		}
		freed := h.node.locks.wait() // before the attempt, so as to miss nothing
		err := f.setLock(in)
		if err != unix.EAGAIN && err != unix.EACCES {
			return status(err)
		}
		timer.Reset(poll)
		select {
		case <-cancel:
			return fuse.EINTR
		case <-freed:
		case <-timer.C:
			poll = min(2*poll, lockPollMost)
		}
	}
}

func (f *FS) setLock(in *fuse.LkIn) error {
	h, fd, err := f.file(in.Fh)
	if err != nil {
		return err
	}
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		return h.setFlock(fd, int16(in.Lk.Typ))
	}
	return h.node.locks.set(in.Owner, in.Lk.Pid, in.Fh, rangeOf(&in.Lk), func() (int, error) {
		return f.openForLocks(h)
	})
}

// openForLocks opens h's file once more. A write lock needs a description that
// can be written to, and a read lock one that can be read; if it can't be
// both, h's own access has to do, which the kernel has checked.
func (f *FS) openForLocks(h *handle) (int, error) {
	f.mu.Lock()
	nodeFD, err := f.useLocked(h.node)
	f.mu.Unlock()
	if err != nil {
		return -1, err
	}
	defer f.done(h.node)
	fd, err := f.withDescriptor(func() (int, error) { return reopen(nodeFD, unix.O_RDWR|unix.O_NONBLOCK) })
	if err != nil {
		fd, err = f.withDescriptor(func() (int, error) { return reopen(nodeFD, h.flags) })
	}
	return fd, err
}

// setFlock does what flock(2) does, on the handle's own description.
func (h *handle) setFlock(fd int, typ int16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	how := map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ]
	err := eintr.Retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
	had := h.flock
	if err == nil {
		h.flock = typ
	} else if err == unix.EAGAIN {
		h.flock = unix.F_UNLCK // what was held is lost (flock(2): conversion is not atomic)
	}
	if had != unix.F_UNLCK && h.flock != unix.F_WRLCK {
		h.node.locks.wake()
	}
	return err
}
