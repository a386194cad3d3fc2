package swap

import (
	"golang.org/x/sys/unix"
)

// held are copies of the old descriptions, so that the processes' own are not
// the last: whoever closes the last of a description sends its daemon a RELEASE,
// and the daemon's work on those would take the processors while processes are
// stopped. They are closed when all have been let go, before a gate is shut again
// that would keep the daemon from hearing of it, or with us if we die.
type held []int

// hold takes copies of u's descriptions, while everybody runs. It takes none where
// more than a RELEASE hangs on the last close: a lock, a lease, a registration with
// an epoll; none of a daemon that is not asked anything, as closing a copy may ask
// it; and none where descriptors might become scarce. Who has none is only stopped
// for longer.
func hold(p *Plan) (h held) {
	u := p.Usage
	if p.Silent() || p.abort || !roomToHold(u) {
		return nil
	}
	for _, t := range u.Tables {
		if len(t.locks)+len(t.epolls)+len(t.inotifies) > 0 {
			return nil
		}
	}
	from := &copies{pidfds: map[Task]int{}}
	defer from.close()
	for _, d := range u.Descriptions {
		if d.Type != unix.S_IFREG && d.Type != unix.S_IFDIR || d.Flags&unix.O_PATH != 0 || d.records || d.lease != nil {
			continue
		}
		// Another file may have the number by now: a copy of it does no harm.
		if fd, err := from.take(d.Refs[0]); err == nil {
			h = append(h, fd)
		}
	}
	return h
}

// roomToHold says whether our table has room for copies beside all that a swap
// needs: a replacement of each, and a few descriptors for each process.
func roomToHold(u *Usage) bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return false
	}
	const ofEach, spare = 16, 256
	return uint64(2*len(u.Descriptions)+ofEach*len(u.Processes)+spare) < limit.Cur
}

func (h *held) close() {
	for _, fd := range *h {
		unix.Close(fd)
	}
	*h = nil
}
