package swap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// fifo is a named pipe on the old file system that somebody has open: an inode
// with a pipe of its own, which no other inode can have. What is in it is
// copied into that of the new inode, by tee(2), which takes nothing away: on
// the way back nothing needs to be done.
type fifo struct {
	ends []*Description
}

// isFIFO says whether d is an end of a pipe.
func (d *Description) isFIFO() bool {
	return d.Type == unix.S_IFIFO && d.Flags&unix.O_PATH == 0
}

func (d *Description) reads() bool { return d.Flags&unix.O_ACCMODE != unix.O_WRONLY }

// fifos divides the pipe ends of u by pipe.
func fifos(u *Usage) ([]*fifo, error) {
	known := map[inodeID]*fifo{}
	var list []*fifo
	for _, d := range u.Descriptions {
		if !d.isFIFO() {
			continue
		}
		id, err := inodeOf(d.Refs[0].link())
		if err != nil {
			return nil, err
		}
		f := known[id]
		if f == nil {
			f = &fifo{}
			known[id] = f
			list = append(list, f)
		}
		f.ends = append(f.ends, d)
	}
	return list, nil
}

// pourFIFOs gives every end of a FIFO its end of the new one, with what is in
// the pipe.
func (r *run) pourFIFOs() error {
	list, err := fifos(r.plan.Usage)
	if err != nil {
		return err
	}
	for _, f := range list {
		d := f.ends[0]
		made, err := f.pour()
		r.made = append(r.made, made...)
		if err != nil {
			return fmt.Errorf("process %s: FIFO %s: %w", processName(d.Refs[0].PID), printable(d.Path), err)
		}
	}
	return nil
}

// pour opens the new pipe for all ends and fills it. What it opened is
// returned also if it fails.
//
// Whether poll(2) says POLLHUP of a read end whose writers are gone depends on
// whether there was one while it was open (fs/pipe.c pipe_poll, fifo_open). So
// ends that say so are opened beside a writer, and those that don't after.
func (f *fifo) pour() (made []*os.File, err error) {
	old, err := f.look()
	if err != nil {
		return nil, err
	}
	defer old.close()
	path := f.ends[0].Replacement
	reader, err := unusedPipe(path)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	if size, err := unix.FcntlInt(reader.Fd(), unix.F_GETPIPE_SZ, 0); err != nil || size != old.size {
		if _, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, old.size); err != nil {
			return nil, fmt.Errorf("giving the new one a capacity of %d bytes: %w", old.size, err)
		}
	}
	writer, err := reopen(path, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	open := func(d *Description) error {
		end, err := openEnd(d)
		if err != nil {
			return err
		}
		made = append(made, end)
		d.Replacement = end
		return nil
	}
	late := func(d *Description) bool { return !old.written && d.reads() && !old.hungUp[d] }
	for _, d := range f.ends {
		if !late(d) {
			if err := open(d); err != nil {
				return made, err
			}
		}
	}
	if err := old.copyTo(writer, reader); err != nil {
		return made, err
	}
	writer.Close()
	for _, d := range f.ends {
		if late(d) {
			if err := open(d); err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

// oldPipe is what there is to know of the old pipe.
type oldPipe struct {
	reader  int // to copy from; -1 if it is empty
	size    int // its capacity
	held    int // bytes in it
	written bool
	hungUp  map[*Description]bool
}

func (o *oldPipe) close() {
	if o.reader >= 0 {
		unix.Close(o.reader)
	}
}

func (f *fifo) look() (*oldPipe, error) {
	old := &oldPipe{reader: -1, hungUp: map[*Description]bool{}}
	for _, d := range f.ends {
		old.written = old.written || d.Flags&unix.O_ACCMODE != unix.O_RDONLY
		if err := old.lookThrough(d); err != nil {
			old.close()
			return nil, err
		}
	}
	if old.held > 0 && old.reader < 0 {
		// Only writers are left.
		fd, err := eintr.Get(func() (int, error) {
			return unix.Open(f.ends[0].Refs[0].link(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return nil, fmt.Errorf("open it for reading: %w", err)
		}
		old.reader = fd
	}
	return old, nil
}

// lookThrough looks at the pipe through one end. That it is closed again wakes
// nobody: the process has it open, too.
func (o *oldPipe) lookThrough(d *Description) (err error) {
	fd, err := takeFD(d.Refs[0])
	if err != nil {
		return err
	}
	defer func() {
		if err == nil && d.reads() && o.reader < 0 {
			o.reader = fd
			return
		}
		unix.Close(fd)
	}()
	if o.held, err = unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil {
		return fmt.Errorf("asking how much is in it: %w", err)
	}
	if o.size, err = unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err != nil {
		return fmt.Errorf("asking for its capacity: %w", err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err = unix.Poll(poll, 0); err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	o.hungUp[d] = poll[0].Revents&unix.POLLHUP != 0
	return nil
}

// copyTo copies all that is in the pipe into the new one, of which reader is
// the other end.
func (o *oldPipe) copyTo(writer, reader *os.File) error {
	if o.held == 0 {
		return nil
	}
	n, err := unix.Tee(o.reader, int(writer.Fd()), o.held, unix.SPLICE_F_NONBLOCK)
	if err != nil {
		return fmt.Errorf("copying the %d bytes in it: tee: %w", o.held, err)
	}
	held, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("asking how much is in the new one: %w", err)
	}
	if n != int64(o.held) || held != o.held {
		return fmt.Errorf("%d of the %d bytes in it could be copied", min(int64(held), n), o.held)
	}
	return nil
}

// errPipeUsed says that a new FIFO is not for those alone who are swapped.
var errPipeUsed = errors.New("somebody has the new one open already")

// unusedPipe opens a FIFO for reading and makes sure that nobody else has it
// open.
func unusedPipe(path *os.File) (*os.File, error) {
	w, err := reopen(path, unix.O_WRONLY|unix.O_NONBLOCK)
	if err == nil {
		w.Close()
		return nil, errPipeUsed // it has a reader
	}
	if !errors.Is(err, unix.ENXIO) {
		return nil, err
	}
	r, err := reopen(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	// A pipe without writers ends at once (fs/pipe.c pipe_read). If it has
	// some, it holds nothing without readers, unless one has just come.
	held, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
	if err == nil && held == 0 {
		var b [1]byte
		var n int
		if n, err = unix.Read(int(r.Fd()), b[:]); err == nil && n == 0 {
			return r, nil
		}
	}
	r.Close()
	return nil, errPipeUsed
}

// openEnd opens the end of the new pipe that d gets. It does not wait for the
// other end, as there is one for the time being; and O_DIRECT, which means
// packets here, is no flag to open a FIFO with, but one to set on it.
func openEnd(d *Description) (*os.File, error) {
	flags := openFlags(d.Flags)&^unix.O_DIRECT | unix.O_NONBLOCK
	open := func() (*os.File, error) { return reopen(d.Replacement, flags) }
	end, err := open()
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		if own, ownErr := openAs(d.Refs[0].Task, open); ownErr == nil {
			return own, nil
		}
	}
	return end, err
}

// dropPipes closes our copies of what the processes have by now: as long as
// somebody has an end of a pipe open, the other does not see it closed.
func (r *run) dropPipes() {
	for _, f := range r.made {
		f.Close()
	}
	r.made = nil
}

// noteOutsidePipe notes a description that is not to be swapped, if it is an
// end of a pipe.
func (a *assembly) noteOutsidePipe(fd *fdRead, outsider *Process) {
	if uint32(fd.attr.Mode)&unix.S_IFMT != unix.S_IFIFO || fd.info.flags&unix.O_PATH != 0 {
		return
	}
	if a.outsidePipes == nil {
		a.outsidePipes = map[uint64]*Process{}
	}
	a.outsidePipes[fd.info.ino] = outsider
}

// addPipeSharers refuses pipes that are open in processes which are not to be
// swapped: they would be cut off.
func (a *assembly) addPipeSharers() {
	for _, d := range a.Descriptions {
		if !d.isFIFO() {
			continue
		}
		if outsider := a.outsidePipes[d.Ino]; outsider != nil {
			a.Obstacles = append(a.Obstacles, a.processes[d.Refs[0].PID].obstacle(
				fmt.Sprintf("fd %d → %s", d.Refs[0].FD, printable(d.Path)),
				fmt.Sprintf("it is a FIFO that process %v has open too, which is not to be swapped", outsider), "swap both"))
		}
	}
}
