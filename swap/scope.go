package swap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/internal/mounts"
)

// Scope says whose files are swapped. The empty scope is everyone on the
// machine.
type Scope struct {
	PIDs    []int    // these processes
	Trees   []int    // these and all their descendants
	Cgroups []string // those in these cgroups and the cgroups below: a directory of cgroupfs, or a path as in /proc/PID/cgroup
}

// Everyone says whether the scope is empty.
func (s Scope) Everyone() bool { return len(s.PIDs)+len(s.Trees)+len(s.Cgroups) == 0 }

// Members is a scope at one moment. Nil is everyone.
type Members map[int]bool

// Has says whether a process is one of them.
func (m Members) Has(pid int) bool { return m == nil || m[pid] }

// Resolve returns the processes that the scope names now. A process that does
// not exist, a kernel thread, or a cgroup without a process is an error.
func (s Scope) Resolve() (Members, error) { return s.resolve(true) }

func (s Scope) resolve(strict bool) (Members, error) {
	if s.Everyone() {
		return nil, nil
	}
	everyone, err := allProcesses()
	if err != nil {
		return nil, err
	}
	members := Members{}
	for _, pid := range append(append([]int(nil), s.PIDs...), s.Trees...) {
		p, ok := everyone[pid]
		switch {
		case !ok && strict:
			return nil, exit.Refuse(fmt.Errorf("process %d: no such process", pid))
		case ok && p.kernel:
			return nil, exit.Refuse(fmt.Errorf("process %d (%s) is a kernel thread", pid, p.comm))
		case ok:
			members[pid] = true
		}
	}
	children := map[int][]int{}
	for pid, p := range everyone {
		children[p.ppid] = append(children[p.ppid], pid)
	}
	for todo := append([]int(nil), s.Trees...); len(todo) > 0; todo = todo[1:] {
		for _, pid := range children[todo[0]] {
			if !members[pid] {
				members[pid] = true
				todo = append(todo, pid)
			}
		}
	}
	for _, path := range s.Cgroups {
		in, err := cgroupMatcher(path)
		if err != nil {
			return nil, err
		}
		found := false
		for pid := range everyone {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			if err == nil && in(string(text)) {
				members[pid] = true
				found = true
			}
		}
		if !found && strict {
			return nil, exit.Refuse(fmt.Errorf("cgroup %s: no process is in it", path))
		}
	}
	return members, nil
}

// extend adds those of some processes to members that have come to the scope:
// descendants of those in a tree, and processes in a cgroup.
func (s Scope) extend(members Members, candidates []int) error {
	if len(candidates) == 0 {
		return nil
	}
	buf := make([]byte, 4096)
	named := map[int]bool{} // for themselves, not with their descendants
	for _, pid := range s.PIDs {
		named[pid] = true
	}
	for _, pid := range s.Trees {
		delete(named, pid)
	}
	proc, err := openProcDir("/proc")
	if err != nil {
		return fmt.Errorf("open /proc: %w", err)
	}
	defer proc.close()
	for _, pid := range candidates {
		var line []int // from pid up to who is in a tree
		for at := pid; at > 0 && len(s.Trees) > 0; {
			if members[at] && !named[at] {
				for _, p := range line {
					members[p] = true
				}
				break
			}
			line = append(line, at)
			text, err := proc.record(strconv.Itoa(at)+"/status", buf)
			if err != nil {
				break // gone
			}
			p, _, err := parseKin(text)
			if err != nil {
				return fmt.Errorf("process %d: %w", at, err)
			}
			at = p.ppid
		}
	}
	for _, path := range s.Cgroups {
		in, err := cgroupMatcher(path)
		if err != nil {
			return err
		}
		for _, pid := range candidates {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			if err == nil && in(string(text)) {
				members[pid] = true
			}
		}
	}
	return nil
}

// kin is what /proc/PID/status tells of a process's place among others.
type kin struct {
	comm   string
	ppid   int
	kernel bool // a kernel thread
}

// allProcesses reads the status of every process that is alive. Other than
// /proc/PID/stat (fs/proc/array.c do_task_stat) it takes no lock that a task
// holds while it waits for a file system in an exec.
func allProcesses() (map[int]kin, error) {
	proc, err := openProcDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer proc.close()
	pids, err := proc.numbers(".", make([]byte, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	all := make(map[int]kin, len(pids))
	buf := make([]byte, 4096)
	for _, pid := range pids {
		text, err := proc.record(strconv.Itoa(pid)+"/status", buf)
		if err != nil {
			continue // gone
		}
		p, alive, err := parseKin(text)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if alive {
			all[pid] = p
		}
	}
	return all, nil
}

// parseKin reads the text of /proc/PID/status. A zombie is not alive, unless
// it is only the leader that has exited.
func parseKin(text []byte) (p kin, alive bool, err error) {
	p.ppid, p.kernel, alive = -1, true, true
	zombie, threads := false, 1
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		key, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch string(key) {
		case "Name":
			p.comm = string(value)
		case "State":
			zombie = len(value) > 0 && (value[0] == 'Z' || value[0] == 'X')
		case "Threads":
			if threads, err = strconv.Atoi(string(value)); err != nil {
				return kin{}, false, fmt.Errorf("status line %q: %w", line, errStat)
			}
		case "PPid":
			if p.ppid, err = strconv.Atoi(string(value)); err != nil {
				return kin{}, false, fmt.Errorf("status line %q: %w", line, errStat)
			}
		case "VmSize": // only what has an address space has this line
			p.kernel = false
		}
	}
	if p.ppid < 0 {
		return kin{}, false, fmt.Errorf("status without a parent: %w", errStat)
	}
	if zombie {
		// Its address space is gone, and its threads may live all the same.
		alive, p.kernel = threads > 1, false
	}
	return p, alive, nil
}

// cgroupMatcher returns a function that tells from the text of /proc/PID/cgroup
// whether a process is in the cgroup or below it.
func cgroupMatcher(path string) (func(text string) bool, error) {
	group, hierarchy, err := cgroupOf(path)
	if err != nil {
		return nil, err
	}
	return func(text string) bool {
		for _, line := range strings.Split(text, "\n") {
			// "5:freezer:/a/b", "1:name=systemd:/", "0::/a" (cgroups(7)).
			parts := strings.SplitN(line, ":", 3)
			if len(parts) == 3 && (hierarchy == nil || hierarchy(parts[1])) && beneath(parts[2], group) {
				return true
			}
		}
		return false
	}, nil
}

// cgroupOf finds which cgroup of which hierarchy path is. A path that is no
// directory of a mounted cgroupfs is taken as it stands in /proc/PID/cgroup,
// in any hierarchy (nil).
func cgroupOf(path string) (group string, hierarchy func(controllers string) bool, err error) {
	own, err := mounts.Own()
	if err != nil {
		return "", nil, err
	}
	defer own.Close()
	table, err := own.Mounts()
	if err != nil {
		return "", nil, err
	}
	if !filepath.IsAbs(path) {
		return "", nil, fmt.Errorf("cgroup %s: not an absolute path", path)
	}
	path = filepath.Clean(path)
	m := table.Containing(path)
	if m == nil || m.FSType != "cgroup" && m.FSType != "cgroup2" {
		return path, nil, nil
	}
	if _, err := os.Stat(path); errors.Is(err, unix.ENOENT) {
		return "", nil, fmt.Errorf("cgroup %s: no such cgroup", path)
	}
	rest, _ := relative(path, m.Point)
	// The root of a mount inside a cgroup namespace may read "/..": then the
	// lines of /proc/PID/cgroup do so too.
	group = filepath.Join(m.Root, rest)
	if m.FSType == "cgroup2" {
		return group, func(controllers string) bool { return controllers == "" }, nil
	}
	return group, func(controllers string) bool {
		for _, c := range strings.Split(controllers, ",") {
			if key, value, named := strings.Cut(c, "="); named {
				if v, ok := m.SuperOption(key); !ok || v != value {
					return false
				}
			} else if _, ok := m.SuperOption(c); !ok || c == "" {
				return false
			}
		}
		return true
	}, nil
}
