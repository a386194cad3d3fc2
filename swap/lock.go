package swap

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockKind is how a lock was taken, and so whose it is.
type lockKind uint8

const (
	flockLock  lockKind = iota // flock(2): the description's
	ofdLock                    // F_OFD_SETLK: the description's
	recordLock                 // F_SETLK: the descriptor table's
	leaseLock                  // F_SETLEASE: the description's
)

// lock is a lock that the kernel keeps.
type lock struct {
	kind  lockKind
	write bool
	pid   int   // who took it; of one by F_OFD_SETLK -1
	start int64 // of a range of bytes
	end   int64 // its last byte, or toEnd
}

// toEnd is OFFSET_MAX, the end of a lock that goes on beyond every end.
const toEnd = 1<<63 - 1

// heldLock is a lock that is taken again on the new file, through a descriptor
// of some table.
type heldLock struct {
	lock
	fd          int
	description *Description
}

var (
	errLock     = errors.New("not understood")
	errBreaking = errors.New("it is being broken")
)

// parseLock reads what fdinfo says of a lock (fs/locks.c lock_get_status),
// with single spaces and without its number:
// "POSIX ADVISORY WRITE 123 00:2d:5 0 EOF".
func parseLock(text string) (l lock, err error) {
	fields := strings.Fields(text)
	if len(fields) != 7 {
		return l, fmt.Errorf("lock %q: %w", text, errLock)
	}
	kinds := map[string]lockKind{"FLOCK": flockLock, "OFDLCK": ofdLock, "POSIX": recordLock, "LEASE": leaseLock}
	var known bool
	if l.kind, known = kinds[fields[0]]; !known {
		return l, fmt.Errorf("lock %q: %w", text, errLock)
	}
	switch {
	case l.kind == leaseLock && fields[1] == "BREAKING":
		return l, errBreaking
	case l.kind == leaseLock && fields[1] != "ACTIVE", l.kind != leaseLock && fields[1] != "ADVISORY":
		return l, fmt.Errorf("lock %q: %w", text, errLock)
	}
	switch fields[2] {
	case "WRITE":
		l.write = true
	case "READ":
	default:
		return l, fmt.Errorf("lock %q: %w", text, errLock)
	}
	var errs [3]error
	l.pid, errs[0] = strconv.Atoi(fields[3])
	l.start, errs[1] = strconv.ParseInt(fields[5], 10, 64)
	l.end = toEnd
	if fields[6] != "EOF" {
		l.end, errs[2] = strconv.ParseInt(fields[6], 10, 64)
	}
	if errors.Join(errs[:]...) != nil || l.start < 0 || l.end < l.start {
		return l, fmt.Errorf("lock %q: %w", text, errLock)
	}
	return l, nil
}

// structFlock is the lock's range as fcntl(2) takes it, with a type.
func (l *lock) structFlock(kind int16) []byte {
	f := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: l.start}
	if l.end != toEnd {
		f.Len = l.end - l.start + 1
	}
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))...)
}

// fcntlType is F_RDLCK or F_WRLCK.
func (l *lock) fcntlType() int16 {
	if l.write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

// addLocks notes what locks are held through a description, of which fds are
// all the descriptors, and says which of them can't be taken again.
func addLocks(d *Description, fds []*fdRead, tables map[*fdRead]*FDTable, refuse func(reason, remedy string)) {
	all := map[string]bool{} // the description's own are shown by every descriptor
	for _, fd := range fds {
		table := tables[fd]
		for _, text := range fd.info.locks {
			l, err := parseLock(text)
			if err != nil {
				if !all[text] {
					refuse(fmt.Sprintf("it is locked (%s), and that can't be carried over: %v", text, err), "release the lock")
				}
				all[text] = true
				continue
			}
			if l.kind == recordLock {
				// It is its table's, and shown by all descriptors of the
				// description in that.
				d.records = true
				table.hold(heldLock{l, fd.ref.FD, d})
				continue
			}
			if all[text] {
				continue
			}
			all[text] = true
			switch l.kind {
			case leaseLock:
				d.lease = &l
			case ofdLock:
				d.records = true
				table.hold(heldLock{l, fd.ref.FD, d})
			case flockLock:
				// Who took it is shown with it, so that one takes it again.
				for _, other := range fds {
					if other.ref.PID == l.pid {
						fd, table = other, tables[other]
						break
					}
				}
				table.hold(heldLock{l, fd.ref.FD, d})
			}
		}
	}
}

// hold notes a lock, once.
func (t *FDTable) hold(h heldLock) {
	for _, other := range t.locks {
		if other.description == h.description && other.lock == h.lock {
			return
		}
	}
	t.locks = append(t.locks, h)
}
