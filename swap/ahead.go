package swap

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// ahead is what was made of a plan while everybody ran: for a plan that still is
// as it was when all are stopped, nothing need be written then.
type ahead struct {
	usage   *Usage
	first   []*job
	further map[int][]*job
}

// writeAhead writes the programs of the plan's jobs, as far as they don't depend
// on what can be made in the stop only. A job that comes to nothing is written
// then, if it still is wanted.
func writeAhead(p *Plan, v *verdict) *ahead {
	a := &ahead{usage: p.Usage}
	a.first, a.further = jobs(p.Usage)
	for _, list := range append([][]*job{a.first}, slices.Collect(maps.Values(a.further))...) {
		for _, j := range list {
			if !j.foreseeable() {
				continue
			}
			if _, err := j.programNow(p, v); err != nil {
				j.close()
			}
		}
	}
	return a
}

// foreseeable says whether the job is the same in the stop, if the plan is. Where
// only the root is on the old file system, the working directory is one that
// nobody has compared.
func (j *job) foreseeable() bool {
	return (j.space == nil || j.space.Exe == nil) && (j.context == nil || j.context.Root == nil) &&
		len(j.table.watchFiles()) == 0
}

// close gives up what was not taken.
func (a *ahead) close() {
	if a == nil {
		return
	}
	for _, list := range append([][]*job{a.first}, slices.Collect(maps.Values(a.further))...) {
		for _, j := range list {
			j.close()
		}
	}
}

// jobs are those written ahead if u is what they are for, and new ones if not.
func (a *ahead) jobs(u *Usage) (first []*job, further map[int][]*job) {
	if a == nil || a.usage != u {
		return jobs(u)
	}
	return a.first, a.further
}

// programNow is the program that was written for j, or else a new one.
func (j *job) programNow(p *Plan, v *verdict) (*program, error) {
	room, err := roomFor(j.task)
	if err != nil {
		return nil, err
	}
	if j.program != nil && j.program.room <= room {
		return j.program, nil
	}
	if j.context != nil {
		if err := j.holdDirectories(); err != nil {
			return nil, err
		}
	}
	j.noWayBack = p.Silent()
	watched := len(j.table.watchFiles())
	if n := len(j.table.early()) + watched; n >= room {
		return nil, fmt.Errorf("process %d: %d free descriptor numbers are needed, and %d are there", j.task.PID, n+1, room)
	} else if watched > 0 {
		if j.spare, err = spareNumber(j.task, n+ownNumbers); err != nil {
			return nil, err
		}
	}
	j.program = newProgram(j, v, room)
	return j.program, nil
}

// close gives back the way back.
func (j *job) close() {
	for _, f := range []**os.File{&j.oldCwd, &j.oldRoot} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	j.program = nil
	if j.space != nil {
		j.space.Exe.close()
	}
}

// holdDirectories opens the context's present directories, which asks no file
// system: they are magic links, and O_PATH opens nothing.
func (j *job) holdDirectories() error {
	for _, d := range []struct {
		link string
		to   **os.File
	}{{"cwd", &j.oldCwd}, {"root", &j.oldRoot}} {
		if *d.to != nil {
			continue
		}
		name := fmt.Sprintf("/proc/%d/task/%d/%s", j.task.PID, j.task.TID, d.link)
		fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("holding %s: %w", name, err)
		}
		*d.to = os.NewFile(uintptr(fd), name)
	}
	return nil
}
