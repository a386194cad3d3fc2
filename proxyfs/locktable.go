package proxyfs

import (
	"sync"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// lockTable is what programs have locked of one file by fcntl(2), owner by
// owner. Each owner has an open file description of its own on the file below
// and holds its locks there as F_OFD_SETLK locks, which conflict with
// everyone else's as they should: other owners', and those of programs that
// use the file below directly.
type lockTable struct {
	mu     sync.Mutex
	owners map[uint64]*lockOwner
	freed  chan struct{} // closed when something is unlocked; nil if nobody waits
}

// lockOwner is who the kernel says holds locks: a file descriptor table
// (POSIX locks) or an open file (OFD locks); the id does not tell which.
type lockOwner struct {
	fd      int // -1: the file was not found in this directory
	pid     uint32
	ranges  []lockRange
	handles map[uint64]struct{} // through which it locked
}

// wait returns a channel that is closed when something is next unlocked.
func (t *lockTable) wait() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.freed == nil {
		t.freed = make(chan struct{})
	}
	return t.freed
}

func (t *lockTable) wakeLocked() {
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}

func (t *lockTable) wake() {
	t.mu.Lock()
	t.wakeLocked()
	t.mu.Unlock()
}

// set locks or unlocks r for an owner through a handle; open makes its
// description if it has none yet. EAGAIN: somebody else has it.
func (t *lockTable) set(id uint64, pid uint32, handle uint64, r lockRange, open func() (int, error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.owners[id]
	if o == nil {
		if r.typ == unix.F_UNLCK {
			return nil
		}
		o = &lockOwner{fd: -1, handles: make(map[uint64]struct{})}
	}
	if o.fd < 0 {
		fd, err := open()
		if err != nil {
			return err
		}
		o.fd = fd
	}
	fl := r.flock()
	if err := eintr.Retry(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &fl) }); err != nil {
		if len(o.ranges) == 0 {
			unix.Close(o.fd)
		}
		return err
	}
	o.pid = pid
	o.handles[handle] = struct{}{}
	before := o.ranges
	o.ranges = setRange(o.ranges, r)
	if t.owners == nil {
		t.owners = make(map[uint64]*lockOwner)
	}
	t.owners[id] = o
	if len(o.ranges) == 0 {
		t.dropLocked(id)
	} else if r.typ != unix.F_WRLCK && len(before) > 0 {
		t.wakeLocked() // less is locked than was
	}
	return nil
}

// drop unlocks everything an owner has.
func (t *lockTable) drop(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(id)
}

func (t *lockTable) dropLocked(id uint64) {
	o := t.owners[id]
	if o == nil {
		return
	}
	delete(t.owners, id)
	if o.fd >= 0 {
		unix.Close(o.fd)
	}
	t.wakeLocked()
}

// released unlocks what was locked through a handle that is released. POSIX
// locks are gone by then: whoever had the file open has closed it, which was
// a FLUSH with its id. What is left are OFD locks, of which the kernel tells
// nothing when they end.
func (t *lockTable) released(handle uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, o := range t.owners {
		if _, ok := o.handles[handle]; ok {
			t.dropLocked(id)
		}
	}
	t.wakeLocked() // flock(2) locks end with the handle too
}

// conflict returns the pid of an owner other than id that holds something
// that r would conflict with; 0 if it is none of this mount's.
func (t *lockTable) conflict(id uint64, r lockRange) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for other, o := range t.owners {
		if other == id {
			continue
		}
		for _, held := range o.ranges {
			if held.overlaps(r) && (held.typ == unix.F_WRLCK || r.typ == unix.F_WRLCK) {
				return o.pid
			}
		}
	}
	return 0
}

// description returns the owner's descriptor, -1 if it has none.
func (t *lockTable) description(id uint64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.owners[id]; o != nil {
		return o.fd
	}
	return -1
}

// closeAll takes the owners' descriptors away, and so unlocks everything below
// without forgetting it.
func (t *lockTable) closeAll() (fds []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		if o.fd >= 0 {
			fds = append(fds, o.fd)
			o.fd = -1
		}
	}
	return fds
}

// empty tells whether nobody has locked anything.
func (t *lockTable) empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.owners) == 0
}
