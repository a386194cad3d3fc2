package swap

import (
	"os"
	"slices"
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

// jobs divides u among as few threads as can do it. The first list holds at
// most one job per process, that of the mappings if there are any; further holds,
// by process, the jobs of other threads of it, with tables or directories of
// their own. All run at the same time.
func jobs(u *Usage) (first []*job, further map[int][]*job) {
	further = map[int][]*job{}
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
	taken := map[int]bool{}
	for _, j := range order {
		if taken[j.task.PID] {
			further[j.task.PID] = append(further[j.task.PID], j)
		} else {
			taken[j.task.PID] = true
			first = append(first, j)
		}
	}
	return first, further
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
