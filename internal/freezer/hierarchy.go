package freezer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// ErrNone: this machine has no hierarchy of cgroups that can freeze.
var ErrNone = errors.New("neither cgroup v2 nor the freezer controller of v1 is mounted")

// Hierarchy is a mounted hierarchy of cgroups whose members can be frozen.
type Hierarchy struct {
	point string // where it is mounted
	root  string // what of it is mounted there
	v2    bool
}

// V2 says whether the hierarchy is cgroup v2's.
func (h *Hierarchy) V2() bool { return h.v2 }

// Find returns the hierarchy to use: cgroup v2's where it is mounted, else
// that of v1's freezer.
func Find() (*Hierarchy, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("looking for a freezer: %w", err)
	}
	return choose(all)
}

func choose(all []*mountinfo.Info) (*Hierarchy, error) {
	var v1 *Hierarchy
	for _, m := range all {
		switch {
		case m.FSType == "cgroup2":
			return &Hierarchy{m.Mountpoint, m.Root, true}, nil
		case m.FSType == "cgroup" && v1 == nil && hasWord(m.VFSOptions, "freezer"):
			v1 = &Hierarchy{m.Mountpoint, m.Root, false}
		}
	}
	if v1 == nil {
		return nil, ErrNone
	}
	return v1, nil
}

func hasWord(list, word string) bool {
	for _, w := range strings.Split(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// Of returns the cgroup that a process is in.
func (h *Hierarchy) Of(pid int) (*Cgroup, error) {
	name := fmt.Sprintf("/proc/%d/cgroup", pid)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("the cgroup of process %d: %w", pid, err)
	}
	path, err := h.parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("the cgroup of process %d: %w", pid, err)
	}
	return &Cgroup{path: path, v2: h.v2, top: path == h.point}, nil
}

// parse finds the hierarchy's line in the text of /proc/PID/cgroup
// (kernel/cgroup/cgroup.c, proc_cgroup_show): "0::/path" or
// "7:freezer:/path".
func (h *Hierarchy) parse(text string) (string, error) {
	for line := range strings.Lines(text) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || h.v2 && controllers != "" || !h.v2 && !hasWord(controllers, "freezer") {
			continue
		}
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(h.root, "/"))
		if !ok || below != "" && below[0] != '/' {
			return "", fmt.Errorf("%s is not below %s, which is what %s shows", path, h.root, h.point)
		}
		return filepath.Join(h.point, below), nil
	}
	return "", errors.New("it is in no cgroup of the hierarchy at " + h.point)
}

// Path is the directory of the cgroup that [Hierarchy.Create] makes.
func (h *Hierarchy) Path(name string) string { return filepath.Join(h.point, name) }

// Create makes a new cgroup of that name at the hierarchy's top.
func (h *Hierarchy) Create(name string) (*Cgroup, error) {
	path := h.Path(name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	return &Cgroup{path: path, v2: h.v2}, nil
}

// Open returns the cgroup at a path that [Cgroup.Path] gave before.
func (h *Hierarchy) Open(path string) *Cgroup {
	return &Cgroup{path: path, v2: h.v2, top: path == h.point}
}
