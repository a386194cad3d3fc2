package swap

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// A watch belongs to an inode, and its number to the instance, which gives it
// to one watch at a time. So a watch is ended, and made for the new inode under
// the same number: before the verdict, since making one may fail, and with a
// way back that does the same the other way round. Ending one leaves an event,
// IN_IGNORED, in the queue, behind what is there; it is read off at once, so
// the queue must be empty before. Should a watch of another file system report
// something in just that microsecond, it is lost.
//
// A path is the only way to name what is to be watched. The process gets the
// files as O_PATH descriptors, which it puts one after the other at a number
// known beforehand, for that number's link in /proc to lead there.

const (
	inotifySetNextWD = 0x40044900 // INOTIFY_IOC_SETNEXTWD, include/uapi/linux/inotify.h
	inotifyEvent     = 16         // sizeof(struct inotify_event)
)

// watchFiles are the files that the batch gets for t's watches: for each the
// new one and the old one.
func (t *FDTable) watchFiles() (files message) {
	if t == nil {
		return nil
	}
	for _, in := range t.inotifies {
		for _, w := range in.watches {
			files = append(files, &w.Replacement, &w.old)
		}
	}
	return files
}

// spareNumber finds a descriptor number that task's table does not have, with
// at least beyond free ones below it, which the batch gets first.
func spareNumber(task Task, beyond int) (int, error) {
	limit, err := openFilesLimit(task.PID)
	if err != nil {
		return 0, err
	}
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/task/%d/fd", task.PID, task.TID))
	if err != nil {
		return 0, fmt.Errorf("listing the descriptors of process %d: %w", task.PID, err)
	}
	used := map[int]bool{}
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil {
			used[fd] = true
		}
	}
	for fd := range limit {
		if used[fd] {
			continue
		}
		if beyond--; beyond < 0 {
			return fd, nil
		}
	}
	return 0, fmt.Errorf("process %d: too few descriptor numbers are free", task.PID)
}

// mover writes the part of a batch that moves watches.
type mover struct {
	*program
	spare  int        // the number that path leads to
	path   ptrace.Ref // its link
	unread ptrace.Ref // int32
	events ptrace.Ref // room for what is read off
	room   int
}

// moveWatches moves t's watches to the new files.
func (p *program) moveWatches(t *FDTable, spare int) {
	if len(t.inotifies) == 0 {
		return
	}
	files := t.watchFiles()
	var fds []ptrace.Ref
	for part := range slices.Chunk(files, maxRights) {
		fds = append(fds, p.receive(p.Zero(4), part)...)
	}
	p.open = append(p.open, fds...)
	m := &mover{
		program: p, spare: spare, path: p.String("/proc/thread-self/fd/" + strconv.Itoa(spare)),
		unread: p.Zero(4), room: 4096 + inotifyEvent*len(files),
	}
	m.events = p.Zero(m.room)
	p.did(func() { m.closeSpare() })
	m.try(fds)
	for _, in := range t.inotifies {
		m.move(in, fds)
		fds = fds[2*len(in.watches):]
	}
}

// try makes sure, before anything is changed, that the link leads to every
// file.
func (m *mover) try(fds []ptrace.Ref) {
	for _, fd := range fds {
		m.aim(fd)
		m.Syscall(unix.SYS_READLINKAT, ptrace.Int(unix.AT_FDCWD), m.path, m.events, ptrace.Int(m.room)).
			Name("looking for /proc, which a watch is made through,")
	}
}

// move moves the watches of one instance.
func (m *mover) move(in *inotify, fds []ptrace.Ref) {
	fd := ptrace.Int(in.fd)
	name := func(what string) string { return fmt.Sprintf("inotify %d: %s", in.fd, what) }
	m.setNext(in, in.next).Name(name("asking whether numbers can be chosen"))
	m.count(in).Name(name("asking for unread events"))
	m.demand(func(ok ptrace.Label) { m.BranchEqual(m.unread, 0, ok) }, name("events have come that nobody has read"))
	for i, w := range in.watches {
		m.Syscall(unix.SYS_INOTIFY_RM_WATCH, fd, ptrace.Int(w.Number)).Name(name("ending watch " + strconv.Itoa(w.Number)))
		m.did(func() {
			m.drain(in)
			m.setNext(in, w.Number).Ignore()
			m.goOn(m.add(in, w, fds[2*i+1]).Name(name("watching " + w.Path + " again")))
			m.closeSpare()
		})
	}
	m.drain(in)
	for i, w := range in.watches {
		m.setNext(in, w.Number).Name(name("choosing a number"))
		made := m.add(in, w, fds[2*i]).Name(name("watching " + w.Path))
		m.did(func() { m.Syscall(unix.SYS_INOTIFY_RM_WATCH, fd, made).Ignore() })
		m.demand(func(ok ptrace.Label) { m.BranchResult(made, uint32(w.Number), ok) }, name("watching "+w.Path+": another number was given"))
	}
	m.setNext(in, in.next).Ignore()
	m.closeSpare()
}

// demand makes a call that must fail, under a name, unless branch goes to ok.
func (m *mover) demand(branch func(ok ptrace.Label), name string) {
	ok := m.Label()
	branch(ok)
	m.Syscall(unix.SYS_CLOSE, ptrace.Int(-1)).Name(name)
	m.Bind(ok)
}

// aim makes the path lead to the file that fd is.
func (m *mover) aim(fd ptrace.Ref) {
	m.Syscall(unix.SYS_DUP3, fd.Int32(), ptrace.Int(m.spare), ptrace.Int(unix.O_CLOEXEC)).Name("dup3")
}

func (m *mover) closeSpare() { m.Syscall(unix.SYS_CLOSE, ptrace.Int(m.spare)).Ignore() }

// add watches what fd is. A watch of it that is there already would be changed
// instead, but for IN_MASK_CREATE.
func (m *mover) add(in *inotify, w *Watch, fd ptrace.Ref) *ptrace.Call {
	m.aim(fd)
	return m.Syscall(unix.SYS_INOTIFY_ADD_WATCH, ptrace.Int(in.fd), m.path, ptrace.Const(w.Mask|unix.IN_MASK_CREATE))
}

// setNext chooses the number of the next watch.
func (m *mover) setNext(in *inotify, number int) *ptrace.Call {
	return m.Syscall(unix.SYS_IOCTL, ptrace.Int(in.fd), ptrace.Const(inotifySetNextWD), ptrace.Int(min(number, math.MaxInt32)))
}

func (m *mover) count(in *inotify) *ptrace.Call {
	return m.Syscall(unix.SYS_IOCTL, ptrace.Int(in.fd), ptrace.Const(unix.TIOCINQ), m.unread) // FIONREAD
}

// drain reads off what is in the queue.
func (m *mover) drain(in *inotify) {
	m.count(in).Ignore()
	empty := m.Label()
	m.BranchEqual(m.unread, 0, empty)
	m.Syscall(unix.SYS_READ, ptrace.Int(in.fd), m.events, ptrace.Int(m.room)).Ignore()
	m.Bind(empty)
}
