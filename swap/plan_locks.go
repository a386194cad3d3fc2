package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// askLocks asks the old file system for record locks that it keeps itself: a
// FUSE daemon may (FUSE_POSIX_LOCKS, fs/fuse/file.c fuse_file_lock), and then
// the kernel has no trace of them. A file that is locked is an obstacle. It is
// for a plan whose AskOld is set, while everybody runs: a request per file.
//
// Locks of flock(2) that a daemon keeps can't be asked for, only tried, which
// would take them.
func (p *Plan) askLocks(ctx context.Context) error {
	files := map[uint64]*Description{}
	for _, d := range p.Usage.Descriptions {
		switch {
		case d.Type != unix.S_IFREG || d.Flags&unix.O_PATH != 0:
		case d.records:
			return nil // the kernel keeps them, of the whole file system
		default:
			if _, known := files[d.Ino]; !known {
				files[d.Ino] = d
			}
		}
	}
	type answer struct {
		description *Description
		obstacle    *Obstacle
	}
	answers := make(chan answer, len(files))
	var g errgroup.Group
	// Each waits for the daemon, not for a processor.
	g.SetLimit(8 * runtime.GOMAXPROCS(0))
	var queue []*Description
	for _, d := range p.Usage.Descriptions { // in their order, so that obstacles are
		if files[d.Ino] != d {
			continue
		}
		queue = append(queue, d)
	}
	go func() {
		for _, d := range queue {
			g.Go(func() error {
				answers <- answer{d, p.askLock(d)}
				return nil
			})
		}
	}()
	found := map[*Description]*Obstacle{}
	for range queue {
		select {
		case a := <-answers:
			found[a.description] = a.obstacle
		case <-ctx.Done():
			return fmt.Errorf("asking the old mount for locks: its daemon does not answer: %w", ctx.Err())
		}
	}
	for _, d := range p.Usage.Descriptions {
		if o := found[d]; o != nil {
			p.Obstacles = append(p.Obstacles, *o)
		}
	}
	return nil
}

// askLock asks for a lock on d's file, whoever holds it: of a copy of the
// description, in our name, all others' locks are in the way of an exclusive
// one.
func (p *Plan) askLock(d *Description) *Obstacle {
	ref := d.Refs[0]
	obstacle := func(reason string) *Obstacle {
		return &Obstacle{
			PID: ref.PID, Process: processName(ref.PID), Resource: fmt.Sprintf("fd %d → %s", ref.FD, printable(d.Path)),
			Reason: reason, Remedy: "release the lock",
		}
	}
	fd, err := takeFD(ref)
	if err != nil {
		return nil // closed since: whoever looks again sees what came of it
	}
	defer unix.Close(fd)
	var lock unix.Flock_t
	// A lock of the kernel's may come and go as we ask: it is one if the kernel
	// has it at any time.
	for range 20 {
		lock = unix.Flock_t{Type: unix.F_WRLCK} // from 0 to the end
		err = eintr.Retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock) })
		if err != nil || lock.Type == unix.F_UNLCK {
			break
		}
		if text, err := os.ReadFile("/proc/locks"); err == nil && kernelLock(string(text), p.Usage.Dev, d.Ino) {
			return nil
		}
	}
	switch {
	case err == nil && lock.Type == unix.F_UNLCK:
		return nil
	case err == nil && lock.Pid > 0:
		return obstacle(fmt.Sprintf("its daemon keeps a lock on it, of process %s", processName(int(lock.Pid))))
	case err == nil:
		return obstacle("its daemon keeps a lock on it")
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK),
		errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
		return nil // it keeps none, or is no more
	default:
		return obstacle(fmt.Sprintf("whether its daemon keeps a lock on it can't be told (%v)", err))
	}
}

// kernelLock says whether the text of /proc/locks (fs/locks.c lock_get_status)
// has a record lock on a file.
func kernelLock(text string, dev, ino uint64) bool {
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), ino)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[1] == "->" { // it waits for the one above
			fields = fields[1:]
		}
		if len(fields) > 5 && (fields[1] == "POSIX" || fields[1] == "OFDLCK") && fields[5] == file {
			return true
		}
	}
	return false
}
