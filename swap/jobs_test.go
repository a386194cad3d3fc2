package swap

import "testing"

func TestJobs(t *testing.T) {
	t1, t2, t3 := Task{10, 10}, Task{10, 11}, Task{20, 20}
	for _, c := range []struct {
		name           string
		usage          Usage
		first, further []job
	}{
		{
			name: "one process, everything shared by its threads",
			usage: Usage{
				Tables:   []*FDTable{{Tasks: []Task{t1, t2}}},
				Contexts: []*FSContext{{Tasks: []Task{t1, t2}}},
				Spaces:   []*AddressSpace{{Tasks: []Task{t1, t2}}},
			},
			first: []job{{task: t1}},
		},
		{
			name:    "a thread with a table of its own",
			usage:   Usage{Tables: []*FDTable{{Tasks: []Task{t1}}, {Tasks: []Task{t2}}}},
			first:   []job{{task: t1}},
			further: []job{{task: t2}},
		},
		{
			name: "only a second thread's table, and mappings of both",
			usage: Usage{
				Tables: []*FDTable{{Tasks: []Task{t2}}},
				Spaces: []*AddressSpace{{Tasks: []Task{t1, t2}}},
			},
			first: []job{{task: t2}},
		},
		{
			name: "two tables and the mappings of both",
			usage: Usage{
				Tables: []*FDTable{{Tasks: []Task{t1}}, {Tasks: []Task{t2}}},
				Spaces: []*AddressSpace{{Tasks: []Task{t2, t1}}},
			},
			first:   []job{{task: t2}},
			further: []job{{task: t1}},
		},
		{
			name: "a table shared by two processes is one job",
			usage: Usage{
				Tables:   []*FDTable{{Tasks: []Task{t1, t3}}},
				Contexts: []*FSContext{{Tasks: []Task{t1}}, {Tasks: []Task{t3}}},
			},
			first: []job{{task: t1}, {task: t3}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var first, further []*job
			for _, list := range jobs(&c.usage) {
				pid := list[0].task.PID
				first, list = append(first, list[0]), list[1:]
				for _, j := range list {
					if j.task.PID != pid {
						t.Errorf("a job of %v is among those of process %d", j.task, pid)
					}
				}
				further = append(further, list...)
			}
			for _, l := range []struct {
				name      string
				got, want []job
			}{{"first", deref(first), c.first}, {"further", deref(further), c.further}} {
				if len(l.got) != len(l.want) {
					t.Fatalf("%s: %d jobs, want %d: %+v", l.name, len(l.got), len(l.want), l.got)
				}
				for i := range l.got {
					if l.got[i].task != l.want[i].task {
						t.Errorf("%s job %d runs in %v, want %v", l.name, i, l.got[i].task, l.want[i].task)
					}
				}
			}
			seen := map[any]int{}
			for _, j := range append(first, further...) {
				seen[j.table]++
				seen[j.context]++
				seen[j.space]++
			}
			for _, x := range c.usage.Tables {
				if seen[x] != 1 {
					t.Errorf("a table is in %d jobs", seen[x])
				}
			}
			for _, x := range c.usage.Contexts {
				if seen[x] != 1 {
					t.Errorf("an fs is in %d jobs", seen[x])
				}
			}
			for _, x := range c.usage.Spaces {
				if seen[x] != 1 {
					t.Errorf("an address space is in %d jobs", seen[x])
				}
			}
		})
	}
}

func deref(js []*job) (out []job) {
	for _, j := range js {
		out = append(out, *j)
	}
	return out
}
