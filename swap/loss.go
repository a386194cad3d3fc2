package swap

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/fusectl"
)

// loses divides what was found to be in the way from what would be lost with
// the old daemon, if that is accepted.
func (p *Plan) loses() {
	p.Losses = nil
	if !p.acceptLoss {
		return
	}
	var obstacles []Obstacle
	for _, o := range p.Obstacles {
		if o.Loss {
			o.Remedy = ""
			p.Losses = append(p.Losses, o)
		} else {
			obstacles = append(obstacles, o)
		}
	}
	p.Obstacles = obstacles
}

const lossRemedy = "let the daemon of --from answer, or say --accept-loss"

// lost finds what processes have written to the old file system and its daemon
// does not have. It can't be flushed: the daemon is silent.
//
// What is known for certain are the files (fs/fs-writeback.c: an inode with a
// dirty page is in a list of its file system) and the mappings. Pages of a
// writeback cache can't be told apart by description, so all that have such a
// file open for writing are named.
func (p *Plan) lost(usage *Usage) []Obstacle {
	if !p.Silent() {
		return nil
	}
	var losses []Obstacle
	note := func(process *Process, resource, reason string) {
		o := process.obstacle(resource, reason, lossRemedy)
		o.Loss = true
		losses = append(losses, o)
	}
	insider := map[int]*Process{}
	for _, process := range usage.Processes {
		insider[process.PID] = process
	}
	told, dirty := map[uint64]bool{}, map[uint64]bool{}
	eachWritten := func(visit func(process *Process, ino uint64, resource string, dirty int64)) {
		for _, s := range usage.Spaces {
			for _, m := range s.Mappings {
				if process := oneOf(insider, s.Tasks); m.writes() && process != nil {
					visit(process, m.Ino, fmt.Sprintf("mapping %x-%x → %s", m.Start, m.End, printable(m.Path)), m.Dirty)
				}
			}
		}
		for _, d := range usage.Descriptions {
			tasks := make([]Task, len(d.Refs))
			for i, ref := range d.Refs {
				tasks[i] = ref.Task
			}
			if process := oneOf(insider, tasks); d.writes() && process != nil {
				visit(process, d.Ino, fmt.Sprintf("fd %d → %s", d.Refs[0].FD, printable(d.Path)), 0)
			}
		}
	}
	eachWritten(func(process *Process, ino uint64, resource string, bytes int64) {
		if bytes > 0 {
			told[ino], dirty[ino] = true, true
			note(process, resource, fmt.Sprintf("%d KiB were written to it that the daemon does not have", bytes>>10))
		}
	})
	kernel, err := fusectl.UnwrittenOf(usage.Dev)
	reason := "what was written to it may never have reached the daemon"
	switch {
	case err != nil:
		reason = fmt.Sprintf("whether all that was written to it has reached the daemon can't be told (%v)", err)
	case kernel.Files > len(dirty), kernel.Bytes > 0 && len(dirty) == 0:
	case p.old == oldDead && kernel.Ever > 0:
		// The kernel has tried to send pages since, and called them clean.
	default:
		return losses
	}
	named := false
	eachWritten(func(process *Process, ino uint64, resource string, _ int64) {
		if !told[ino] {
			named = true
			note(process, resource, reason)
		}
	})
	if !named && len(losses) == 0 {
		// It was closed since, or is being closed.
		losses = append(losses, Obstacle{
			Resource: "mount " + printable(p.From.Path), Reason: "a file that nobody has open: " + reason,
			Remedy: lossRemedy, Loss: true,
		})
	}
	return losses
}

// losesEnd says whether a file is shorter on --to because the silent daemon has
// not been told of its end. Where it is mapped, that makes a difference: the
// process would be killed for looking there.
func (o *opener) losesEnd(j *opening, was, is uint64) bool {
	return o.plan.Silent() && o.written[j.want.ino] && j.ref.TID != 0 && is < was
}

// oneOf is the first process that has one of the tasks.
func oneOf(processes map[int]*Process, tasks []Task) *Process {
	for _, t := range tasks {
		if p := processes[t.PID]; p != nil {
			return p
		}
	}
	return nil
}

// zeros is a file of that size in which nothing is, in place of one that is lost.
func zeros(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("spfs-lost", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "zeros")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("%d bytes of zeros: %w", size, err)
	}
	return f, nil
}
