package swap

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Report is a [Usage] or [Plan] as it is shown to people and, as JSON, to
// programs. Its field names are a stable contract.
type Report struct {
	Device    string          `json:"device"` // "MAJOR:MINOR", as in mountinfo
	From      string          `json:"from,omitempty"`
	To        string          `json:"to,omitempty"`
	Servers   []int           `json:"servers"` // processes that hold the mount's /dev/fuse
	Mounts    []MountReport   `json:"mounts"`
	Processes []ProcessReport `json:"processes"`
	Obstacles []Obstacle      `json:"obstacles"`
	Losses    []Obstacle      `json:"losses,omitempty"` // of a plan that accepts them
}

// MountReport is a mount of the file system in one namespace.
type MountReport struct {
	ID        int    `json:"id"`
	Namespace uint64 `json:"namespace"` // inode of its nsfs file
	Point     string `json:"point"`
	Root      string `json:"root"`
	FSType    string `json:"fstype"`
	Source    string `json:"source"`
}

// ProcessReport is a process and what it holds.
type ProcessReport struct {
	PID     int    `json:"pid"`
	Comm    string `json:"comm"`
	Threads int    `json:"threads"`
	Holds   []Hold `json:"holds"`
}

// Hold is one thing that a process holds.
type Hold struct {
	Kind       string `json:"kind"` // "watch" (of an inotify), "fd", "cwd", "root", "exe" or "mapping"
	FDs        []int  `json:"fds,omitempty"`
	Thread     int    `json:"thread,omitempty"` // of a table or directory that not all threads share
	Start      string `json:"start,omitempty"`  // of a mapping, in hex
	End        string `json:"end,omitempty"`
	Path       string `json:"path"`               // from the file system's root
	Point      string `json:"mount_point"`        // of the mount that it was reached through
	Access     string `json:"access,omitempty"`   // "rw", "r-", "rw append", "path"; "r-x shared" of mappings
	Position   *int64 `json:"position,omitempty"` // of an fd
	SharedWith []int  `json:"shared_with,omitempty"`
	Action     string `json:"action,omitempty"` // of a plan
}

// Name is how a hold is called in a table.
func (h *Hold) Name() string {
	name := h.Kind
	switch h.Kind {
	case "fd", "watch":
		numbers := make([]string, len(h.FDs))
		for i, n := range h.FDs {
			numbers[i] = strconv.Itoa(n)
		}
		name += " " + strings.Join(numbers, ",")
	case "mapping":
		name += " " + h.Start + "-" + h.End
	}
	if h.Thread != 0 {
		name += fmt.Sprintf(" (thread %d)", h.Thread)
	}
	return name
}

// Report says what was found.
func (u *Usage) Report() *Report { return u.report(false) }

// Report says what was found and what will become of it.
func (p *Plan) Report() *Report {
	r := p.Usage.report(true)
	r.From, r.To = p.From.Path, p.To.Path
	r.Obstacles = append([]Obstacle{}, p.Obstacles...)
	r.Losses = p.Losses
	return r
}

func (u *Usage) report(planned bool) *Report {
	r := &Report{
		Device:    fmt.Sprintf("%d:%d", unix.Major(u.Dev), unix.Minor(u.Dev)),
		Servers:   append([]int{}, u.Servers...),
		Mounts:    []MountReport{},
		Processes: []ProcessReport{},
		Obstacles: append([]Obstacle{}, u.Obstacles...),
	}
	for _, m := range u.Mounts {
		r.Mounts = append(r.Mounts, MountReport{m.ID, m.Namespace.Inode, m.Point, m.Root, m.Info.FSType, m.Info.Source})
	}
	holds := u.holds(planned)
	for _, p := range u.Processes {
		r.Processes = append(r.Processes, ProcessReport{p.PID, p.Comm, len(p.Tasks), append([]Hold{}, holds[p.PID]...)})
	}
	return r
}

// holds lists what each process holds.
func (u *Usage) holds(planned bool) map[int][]Hold {
	threads := map[int]int{}
	for _, p := range u.Processes {
		threads[p.PID] = len(p.Tasks)
	}
	holds := map[int][]Hold{}
	add := func(tasks []Task, h Hold, replaced bool, action string) {
		if planned {
			if h.Action = action; !replaced {
				h.Action = "in the way"
			}
		}
		byPID := map[int][]int{}
		for _, t := range tasks {
			byPID[t.PID] = append(byPID[t.PID], t.TID)
		}
		for pid, tids := range byPID {
			own := h
			if len(tids) < threads[pid] {
				own.Thread = slices.Min(tids)
			}
			holds[pid] = append(holds[pid], own)
		}
	}
	sharers := map[*Description][]int{}
	for _, t := range u.Tables {
		for _, fd := range t.FDs {
			for _, task := range t.Tasks {
				if !slices.Contains(sharers[fd.Description], task.PID) {
					sharers[fd.Description] = append(sharers[fd.Description], task.PID)
				}
			}
		}
	}
	for _, t := range u.Tables {
		numbers := map[*Description][]int{}
		var order []*Description
		for _, fd := range t.FDs {
			if numbers[fd.Description] == nil {
				order = append(order, fd.Description)
			}
			numbers[fd.Description] = append(numbers[fd.Description], fd.Num)
		}
		for _, d := range order {
			h := Hold{Kind: "fd", FDs: numbers[d], Path: d.Path, Point: d.Mount.Point, Access: access(d.Flags)}
			if len(sharers[d]) > 1 {
				h.SharedWith = sharers[d]
			}
			action := "opened again"
			if d.Flags&unix.O_PATH == 0 {
				pos := d.Pos
				h.Position = &pos
				action = fmt.Sprintf("opened again, at %d", d.NewPos)
				if d.isFIFO() {
					h.Position, action = nil, "opened again, what is in it copied"
				}
			}
			if d.attr.unlinked {
				action = "made anew, as it is unlinked"
			}
			add(t.Tasks, h, d.Replacement != nil || d.attr.unlinked, action+t.extras(d))
		}
		for _, in := range t.inotifies {
			for _, w := range in.watches {
				h := Hold{Kind: "watch", FDs: []int{in.fd}, Path: w.Path, Access: "number " + strconv.Itoa(w.Number)}
				add(t.Tasks, h, w.Replacement != nil, "made again")
			}
		}
	}
	for _, c := range u.Contexts {
		if c.Cwd != nil {
			add(c.Tasks, Hold{Kind: "cwd", Path: c.Cwd.Path, Point: c.Cwd.Mount.Point}, c.Cwd.Replacement != nil, "moved there")
		}
		if c.Root != nil {
			add(c.Tasks, Hold{Kind: "root", Path: c.Root.Path, Point: c.Root.Mount.Point}, c.Root.Replacement != nil, "moved there")
		}
	}
	for _, s := range u.Spaces {
		if e := s.Exe; e != nil {
			add(s.Tasks, Hold{Kind: "exe", Path: e.Path, Point: e.Mount.Point}, e.Replacement != nil, "exchanged")
		}
		for _, m := range s.Mappings {
			action := "mapped again"
			if !m.Shared {
				action += ", changed pages kept"
			}
			if m.attr.unlinked {
				action += ", of a file made anew, as it is unlinked"
			}
			add(s.Tasks, Hold{
				Kind: "mapping", Start: fmt.Sprintf("%x", m.Start), End: fmt.Sprintf("%x", m.End),
				Path: m.Path, Point: m.Mount.Point, Access: mappingAccess(m),
			}, m.Replacement != nil || m.attr.unlinked, action)
		}
	}
	for pid, list := range holds {
		for i := range list {
			list[i].SharedWith = slices.DeleteFunc(slices.Clone(list[i].SharedWith), func(other int) bool { return other == pid })
		}
		slices.SortStableFunc(list, func(a, b Hold) int { return cmp.Compare(a.Thread, b.Thread) })
	}
	return holds
}

// extras says what else is done about what the table has of d.
func (t *FDTable) extras(d *Description) (s string) {
	for _, l := range t.locks {
		if l.description == d {
			s += ", locked again"
			break
		}
	}
	if d.lease != nil {
		s += ", its lease taken"
	}
	for _, r := range t.epolls {
		if r.description == d {
			return s + ", registered with its epoll"
		}
	}
	return s
}

// access is how a description may be used.
func access(flags int) string {
	if flags&unix.O_PATH != 0 {
		return "path"
	}
	s := [...]string{"r-", "-w", "rw", "--"}[flags&unix.O_ACCMODE]
	for _, f := range []struct {
		bit  int
		name string
	}{
		{unix.O_APPEND, "append"}, {unix.O_NONBLOCK, "nonblock"}, {unix.O_DIRECT, "direct"},
		{unix.O_SYNC &^ unix.O_DSYNC, "sync"}, {unix.O_NOATIME, "noatime"}, {unix.O_ASYNC, "async"},
	} {
		if flags&f.bit != 0 {
			s += " " + f.name
		}
	}
	return s
}

// mappingAccess is how a mapping may be used.
func mappingAccess(m *Mapping) string {
	s := []byte("---")
	if m.Prot&unix.PROT_READ != 0 {
		s[0] = 'r'
	}
	if m.Prot&unix.PROT_WRITE != 0 {
		s[1] = 'w'
	}
	if m.Prot&unix.PROT_EXEC != 0 {
		s[2] = 'x'
	}
	if m.Shared {
		return string(s) + " shared"
	}
	return string(s) + " private"
}
