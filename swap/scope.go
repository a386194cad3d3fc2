package swap

import (
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
	stats, err := allStats()
	if err != nil {
		return nil, err
	}
	members := Members{}
	for _, pid := range append(append([]int(nil), s.PIDs...), s.Trees...) {
		stat, ok := stats[pid]
		switch {
		case !ok && strict:
			return nil, exit.Refuse(fmt.Errorf("process %d: no such process", pid))
		case ok && stat.kernel():
			return nil, exit.Refuse(fmt.Errorf("process %d (%s) is a kernel thread", pid, stat.comm))
		case ok:
			members[pid] = true
		}
	}
	children := map[int][]int{}
	for pid, stat := range stats {
		children[stat.ppid] = append(children[stat.ppid], pid)
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
		for pid := range stats {
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

// allStats reads the stat of every process.
func allStats() (map[int]procStat, error) {
	proc, err := openProcDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer proc.close()
	pids, err := proc.numbers(".", make([]byte, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	stats := make(map[int]procStat, len(pids))
	buf := make([]byte, 4096)
	for _, pid := range pids {
		text, err := proc.record(strconv.Itoa(pid)+"/stat", buf)
		if err != nil {
			continue // gone
		}
		stat, err := parseStat(text)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		stats[pid] = stat
	}
	return stats, nil
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
