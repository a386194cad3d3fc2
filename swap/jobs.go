package swap

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// job is what one thread does, for itself and for all that share with it: the
// batch of one process, or of a thread that has a table or fs of its own.
type job struct {
	task    Task
	table   *FDTable      // nil if there is nothing to do
	spare   int           // a number that the table does not have
	context *FSContext    // likewise
	space   *AddressSpace // likewise

	program *program // nil until it has been written

	// Where a context that is changed was: O_PATH.
	oldCwd, oldRoot *os.File
	// noWayBack says that there is no going there any more.
	noWayBack bool
}

// jobs divides u among as few threads as can do it, by process. The first job of a
// process is that of the mappings, if there are any; others are those of threads of
// it with tables or directories of their own. All run at the same time.
func jobs(u *Usage) (all [][]*job) {
	// What few tasks share leaves the least choice, so it chooses first and
	// what more of them share joins it.
	type object struct {
		tasks []Task
		put   func(*job) bool // false if the job has one of the kind
	}
	var objects []object
	for _, s := range u.Spaces {
		objects = append(objects, object{s.Tasks, func(j *job) bool { return put(&j.space, s) }})
	}
	for _, t := range u.Tables {
		objects = append(objects, object{t.Tasks, func(j *job) bool { return put(&j.table, t) }})
	}
	for _, c := range u.Contexts {
		objects = append(objects, object{c.Tasks, func(j *job) bool { return put(&j.context, c) }})
	}
	slices.SortStableFunc(objects, func(a, b object) int { return len(a.tasks) - len(b.tasks) })

	byTask := map[Task]*job{}
	var order []*job
next:
	for _, o := range objects {
		for _, t := range o.tasks {
			if j := byTask[t]; j != nil && o.put(j) {
				continue next
			}
		}
		task := o.tasks[0]
		if i := slices.IndexFunc(o.tasks, func(t Task) bool { return t.PID == t.TID && byTask[t] == nil }); i >= 0 {
			task = o.tasks[i]
		}
		j := &job{task: task}
		o.put(j)
		byTask[task] = j
		order = append(order, j)
	}
	slices.SortStableFunc(order, func(a, b *job) int { return rank(a) - rank(b) })
	index := map[int]int{} // of a process in all
	for _, j := range order {
		i, known := index[j.task.PID]
		if !known {
			i = len(all)
			index[j.task.PID] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], j)
	}
	return all
}

// put fills an empty slot.
func put[T any](slot **T, v *T) bool {
	if *slot != nil {
		return false
	}
	*slot = v
	return true
}

func rank(j *job) int {
	if j.space != nil {
		return 0
	}
	return 1
}

// foreseeable says whether the job is the same in the stop, if the plan is. Where
// only the root is on the old file system, the working directory is one that
// nobody has compared.
func (j *job) foreseeable() bool {
	return (j.space == nil || j.space.Exe == nil) && (j.context == nil || j.context.Root == nil) &&
		len(j.table.watchFiles()) == 0
}

// programNow is the program that was written for j, or else a new one.
func (j *job) programNow(p *Plan, v *verdict) (*program, error) {
	room, err := roomFor(j.task, j.table)
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
