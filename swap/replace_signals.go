package swap

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// Whom a description sends signals to is asked by the process itself, since it
// need not close a copy for that, which asks the daemon. What it says is only
// a reason to look closer: its memory may be written to by others.

// asked is what the process was asked about one description.
type asked struct {
	description   *Description
	owner, signal *ptrace.Call
	leased        ptrace.Ref // uint32: 1 if the lease is to be taken once more
}

// askSignals asks about t's descriptions: each is asked about in one table.
func (p *program) askSignals(t *FDTable) {
	for _, fd := range t.FDs {
		d := fd.Description
		if d.Flags&unix.O_PATH != 0 || len(d.Refs) == 0 || d.Refs[0].FD != fd.Num || !t.has(d.Refs[0].Task) {
			continue
		}
		number := ptrace.Int(fd.Num)
		a := asked{
			description: d,
			// Negative, and so an error by its looks, for a process group.
			owner:  p.Syscall(unix.SYS_FCNTL, number, ptrace.Int(unix.F_GETOWN)).Ignore(),
			signal: p.Syscall(unix.SYS_FCNTL, number, ptrace.Int(fGetSig)).Ignore(),
		}
		if d.lease != nil {
			a.leased = p.Zero(4)
		}
		p.asked = append(p.asked, a)
	}
}

// has says whether task is one of those that share the table.
func (t *FDTable) has(task Task) bool {
	_, found := slices.BinarySearchFunc(t.Tasks, task, compareTasks)
	return found
}

// renewLeases takes the leases of this table again, through the numbers that
// the process has them by: the signal of a lease says the descriptor through
// which it was taken last (fs/locks.c lease_setup). It is ours all the same if
// that fails.
func (p *program) renewLeases() {
	for _, a := range p.asked {
		d := a.description
		if d.lease == nil {
			continue
		}
		skip := p.Label()
		p.BranchNotEqual(a.leased, 1, skip)
		p.Syscall(unix.SYS_FCNTL, ptrace.Int(d.Refs[0].FD), ptrace.Int(unix.F_SETLEASE), ptrace.Int(int(d.lease.fcntlType()))).Ignore()
		p.Bind(skip)
	}
}

// copySignals gives the replacements the owners, signals and leases of the old
// descriptions.
func (w *worker) copySignals() error {
	for _, a := range w.program.asked {
		d := a.description
		owner, _ := w.batch.Result(a.owner)
		signal, _ := w.batch.Result(a.signal)
		if owner == 0 && signal == 0 && d.lease == nil {
			continue
		}
		o, err := d.signalOwner()
		if err == nil {
			err = o.set(int(d.Replacement.Fd()), d.lease)
		}
		if err != nil {
			return fmt.Errorf("process %d: fd %d → %s: its signals: %w", w.job.task.PID, d.Refs[0].FD, d.Path, err)
		}
		if d.lease != nil && o.pid != 0 {
			w.batch.Store32(a.leased, 1)
		}
	}
	return nil
}

func (d *Description) signalOwner() (signalOwner, error) {
	fd, err := takeFD(d.Refs[0])
	if err != nil {
		return signalOwner{}, err
	}
	defer unix.Close(fd)
	return readOwner(fd)
}
