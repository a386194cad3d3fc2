package test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

func TestSwapKeepsCwd(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "dir/f", "content")
	p := rig.StartPuppet(t)
	p.Chdir(m.old + "/dir")
	child := p.Spawn(fork)
	child.Chdir(m.old)
	twin := p.Spawn(thread)
	loner := p.Spawn(threadOf | unix.CLONE_FILES) // no CLONE_FS
	loner.Chdir("/")

	if r := m.swap(t); r.Cwds != 2 {
		t.Errorf("reported %d working directories, want 2", r.Cwds)
	}
	for _, c := range []struct {
		who  string
		p    *rig.Puppet
		want string
	}{{"process", p, m.old + "/dir"}, {"child", child, m.old}, {"thread", twin, m.old + "/dir"}, {"thread with its own", loner, "/"}} {
		if got := c.p.Getcwd(); got != c.want {
			t.Errorf("%s: cwd %s, want %s", c.who, got, c.want)
		}
	}
	if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.PID)); got != m.old+"/dir" {
		t.Errorf("/proc says %s", got)
	}
	fd := p.Open("f", unix.O_RDONLY)
	m.moved(t, p, fd, "dir/f")
	m.moved(t, child, child.Open("dir/f", unix.O_RDONLY), "dir/f")
}

func TestSwapOfAThreadsOwnCwd(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "dir/f", "content")
	p := rig.StartPuppet(t)
	loner := p.Spawn(threadOf | unix.CLONE_FILES) // no CLONE_FS
	loner.Chdir(m.old + "/dir")

	m.swap(t)
	if got := p.Getcwd(); got != "/" {
		t.Errorf("the process's cwd is %s", got)
	}
	m.moved(t, loner, loner.Open("f", unix.O_RDONLY), "dir/f")
}

func TestSwapKeepsRoot(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "jail/sub/f", "content")
	p := rig.StartPuppet(t)
	jailed := p.Spawn(fork)
	jailed.Must(unix.SYS_CHROOT, m.old+"/jail")
	jailed.Chdir("/sub")

	if r := m.swap(t); r.Roots != 1 || r.Cwds != 1 {
		t.Errorf("reported %d roots and %d working directories, want 1 and 1", r.Roots, r.Cwds)
	}
	if got := jailed.Getcwd(); got != "/sub" {
		t.Errorf("cwd %s, want /sub", got)
	}
	m.moved(t, jailed, jailed.Open("/sub/f", unix.O_RDONLY), "jail/sub/f")
	if _, err := jailed.Call(unix.SYS_OPENAT, unix.AT_FDCWD, "/../../data", unix.O_RDONLY, 0); err != unix.ENOENT {
		t.Errorf("a way out of the root: %v", err)
	}
	if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", jailed.PID)); got != m.old+"/jail" {
		t.Errorf("/proc says the root is %s", got)
	}
}
