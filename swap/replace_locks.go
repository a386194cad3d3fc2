package swap

import (
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// Locks that the kernel keeps are taken on the new files before the verdict,
// by the process itself: a lock of fcntl's F_SETLK belongs to the descriptor
// table, and the others show who took them. If one can't be had, the swap goes
// back.
//
// F_SETLK's have a catch: they go when their table closes any descriptor of
// the file (fs/locks.c locks_remove_posix), and what was received must be
// closed once dup3 has put it in its place. So they are taken once more, right
// after that. Nobody in scope gets in between: no process is let go before all
// that hold such locks are through, see [run.goForward].

// early are the descriptions that the batch has before the verdict: what is to
// be tried on them then, may fail.
func (t *FDTable) early() []*Description {
	if t == nil {
		return nil
	}
	var list []*Description
	add := func(d *Description) {
		if !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	records := map[uint64]bool{}
	for _, l := range t.locks {
		add(l.description)
		if l.kind == recordLock {
			records[l.description.Ino] = true
		}
	}
	for _, r := range t.epolls {
		add(r.description)
	}
	if len(records) > 0 {
		// Putting others of the same file in place would drop the locks.
		for _, fd := range t.FDs {
			if records[fd.Description.Ino] {
				add(fd.Description)
			}
		}
	}
	return list
}

// receiveEarly receives t's early descriptions.
func (p *program) receiveEarly(t *FDTable) {
	p.early = map[*Description]ptrace.Ref{}
	for list := range slices.Chunk(t.early(), maxRights) {
		files := make(message, len(list))
		for i, d := range list {
			files[i] = &d.Replacement
		}
		for i, fd := range p.receive(p.Zero(4), files) {
			p.early[list[i]] = fd
		}
	}
}

// takeLocks takes t's locks on the new files.
func (p *program) takeLocks(t *FDTable) {
	for i := range t.locks {
		l := &t.locks[i]
		fd, name := p.early[l.description], l.description.Path
		switch l.kind {
		case flockLock:
			how := unix.LOCK_SH
			if l.write {
				how = unix.LOCK_EX
			}
			p.Syscall(unix.SYS_FLOCK, fd.Int32(), ptrace.Int(how|unix.LOCK_NB)).Name("flock(2) of " + name)
			p.did(func() { p.Syscall(unix.SYS_FLOCK, fd.Int32(), ptrace.Int(unix.LOCK_UN)).Ignore() })
		case ofdLock:
			p.Syscall(unix.SYS_FCNTL, fd.Int32(), ptrace.Int(unix.F_OFD_SETLK), p.Data(l.structFlock(l.fcntlType()))).Name("the lock (F_OFD_SETLK) of " + name)
			p.did(func() {
				p.Syscall(unix.SYS_FCNTL, fd.Int32(), ptrace.Int(unix.F_OFD_SETLK), p.Data(l.structFlock(unix.F_UNLCK))).Ignore()
			})
		case recordLock:
			// Undone by closing the descriptor.
			p.Syscall(unix.SYS_FCNTL, fd.Int32(), ptrace.Int(unix.F_SETLK), p.Data(l.structFlock(l.fcntlType()))).Name("the lock (F_SETLK) of " + name)
		}
	}
}

// replaceEarly puts the early descriptions over the old ones. It comes last,
// since it takes F_SETLK's locks for good.
func (p *program) replaceEarly(t *FDTable) {
	p.unregister(t)
	for _, fd := range t.FDs {
		if from, ok := p.early[fd.Description]; ok {
			p.dup3(from, fd)
		}
	}
	p.register(t)
	for _, d := range t.early() {
		p.closeFD(p.early[d])
	}
	for i := range t.locks {
		if l := &t.locks[i]; l.kind == recordLock {
			p.relocks = true
			p.goOn(p.Syscall(unix.SYS_FCNTL, ptrace.Int(l.fd), ptrace.Int(unix.F_SETLK), p.Data(l.structFlock(l.fcntlType()))).
				Name("the lock (F_SETLK) of " + l.description.Path + ", put in place,"))
		}
	}
}

// goOn makes the program go on with the next line if call fails, which is told
// all the same.
func (p *program) goOn(call *ptrace.Call) {
	next := p.Label()
	p.Bind(next)
	call.OnError(next)
}
