package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// mounts is an old and a new FUSE mount of one directory.
type mounts struct {
	data, old, new   string
	otherData        string // what new shows, if it isn't data
	oldDev, newDev   uint64
	oldProc, newProc *rig.Daemon
}

// bindfsTwice mounts a new directory twice with bindfs.
func bindfsTwice(t *testing.T) *mounts {
	t.Helper()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	m.oldProc, m.newProc = rig.Bindfs(t, m.data, m.old), rig.Bindfs(t, m.data, m.new)
	m.note(t)
	return m
}

// note remembers which file systems are mounted at old and new.
func (m *mounts) note(t *testing.T) {
	t.Helper()
	m.oldDev, m.newDev = devAt(t, 0, m.old), devAt(t, 0, m.new)
}

// swapReport is what spfs-swap run --json promises.
type swapReport struct {
	Processes int   `json:"processes"`
	Threads   int   `json:"threads"`
	FDs       int   `json:"fds"`
	Mappings  int   `json:"mappings"`
	Cwds      int   `json:"cwds"`
	Roots     int   `json:"roots"`
	StoppedUS int64 `json:"stopped_us"`
	TotalUS   int64 `json:"total_us"`
}

// swap runs spfs-swap from m.old to m.new and checks the mount points: the new
// file system at both, the old one at none.
func (m *mounts) swap(t *testing.T, scope ...string) (r swapReport) {
	t.Helper()
	rig.Run(t, rig.Build(t).Swap, append([]string{"run", "--json", "--from", m.old, "--to", m.new}, scope...)...).OK(t).JSON(t, &r)
	if len(scope) > 0 {
		return r
	}
	for _, at := range []string{m.old, m.new} {
		if got := devAt(t, 0, at); got != m.newDev {
			t.Errorf("at %s is the file system %s, want %s", at, devName(got), devName(m.newDev))
		}
	}
	m.gone(t)
	return r
}

// gone checks that nobody on the machine that could be a test's has the old
// file system mounted or any file of it open.
func (m *mounts) gone(t *testing.T) {
	t.Helper()
	// The number may be another test's by now; the directory is this one's.
	old, directory := devName(m.oldDev), parent(m.data)
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		b, _ := os.ReadFile(table) // a process may have ended meanwhile
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 4 && f[2] == old && strings.Contains(line, directory) {
				t.Errorf("still mounted: %s: %s", table, line)
			}
		}
	}
}

// put makes a file in the directory beneath the mounts.
func (m *mounts) put(t *testing.T, name, content string) {
	t.Helper()
	rig.Write(t, filepath.Join(m.data, name), content)
}

// holds checks that the directory beneath has a file of this content.
func (m *mounts) holds(t *testing.T, name, content string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.data, name))
	if err != nil || string(b) != content {
		t.Errorf("%s holds %.60q (%v), want %.60q", name, b, err, content)
	}
}

// devAt is the device number of what a process has mounted at path.
func devAt(t *testing.T, pid int, path string) uint64 {
	t.Helper()
	info := rig.MountAt(t, pid, path)
	if info == nil {
		t.Fatalf("nothing is mounted at %s for pid %d", path, pid)
	}
	return unix.Mkdev(uint32(info.Major), uint32(info.Minor))
}

func devName(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// moved checks that a puppet's descriptor is on the new file system, under the
// path at which it was.
func (m *mounts) moved(t *testing.T, p *rig.Puppet, fd int, name string) {
	t.Helper()
	if got := p.Fstat(fd).Dev; got != m.newDev {
		t.Errorf("fd %d is on %s, want %s", fd, devName(got), devName(m.newDev))
	}
	if got, want := p.Link(fd), filepath.Join(m.old, name); got != want {
		t.Errorf("fd %d is %s, want %s", fd, got, want)
	}
}

// Flags of clone(2) for a thread that shares all that a thread usually does.
const (
	threadOf = unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	thread   = threadOf | unix.CLONE_FS | unix.CLONE_FILES
	fork     = int(unix.SIGCHLD)
)

func itoa(n int) string { return strconv.Itoa(n) }

func trueCommand() *exec.Cmd { return exec.Command("true") }
