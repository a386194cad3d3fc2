package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// restart serves the directory anew where the old mount was taken away from
// beneath, so that m can be swapped once more: to a third mount, and so on.
func (m *mounts) restart(t *testing.T) {
	t.Helper()
	rig.Unmount(t, m.new)
	m.newProc = rig.Bindfs(t, m.data, m.new)
	m.note(t)
}

func parent(dir string) string { return filepath.Dir(dir) }

// inNamespace starts a puppet with a mount namespace of its own, which has all
// mounts that were there, but none that comes later.
func inNamespace(t *testing.T) *rig.Puppet {
	t.Helper()
	p := rig.StartPuppet(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	})
	p.Must(unix.SYS_MOUNT, "none", "/", 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	return p
}

func TestSwapInSeveralMountNamespaces(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "dir/f", "0123456789")
	elsewhere := rig.Mkdir(t, parent(m.old), "elsewhere")
	here := rig.StartPuppet(t)
	there := inNamespace(t)
	// The one there has moved the mount, and has a process that sits in it.
	there.Must(unix.SYS_MOUNT, m.old, elsewhere, 0, unix.MS_MOVE, 0)
	fd := here.Open(m.old+"/dir/f", unix.O_RDONLY)
	fdThere := there.Open(elsewhere+"/dir/f", unix.O_RDONLY)
	there.Chdir(elsewhere + "/dir")
	// Nobody in this one uses the mount; it has it all the same.
	idle := inNamespace(t)

	m.swap(t)
	m.moved(t, here, fd, "dir/f")
	if got := there.Fstat(fdThere).Dev; got != m.newDev {
		t.Errorf("the descriptor there is on %s, want %s", devName(got), devName(m.newDev))
	}
	if got := there.Link(fdThere); got != elsewhere+"/dir/f" {
		t.Errorf("the descriptor there is %s", got)
	}
	if got := there.Getcwd(); got != elsewhere+"/dir" {
		t.Errorf("the cwd there is %s", got)
	}
	for p, at := range map[*rig.Puppet]string{there: elsewhere, idle: m.old} {
		if got := devAt(t, p.PID, at); got != m.newDev {
			t.Errorf("process %d sees %s at %s, want %s", p.PID, devName(got), at, devName(m.newDev))
		}
	}
	if rig.MountAt(t, here.PID, elsewhere) != nil {
		t.Error("a mount of the other namespace came here")
	}
}

func TestSwapOfBindMountsOfParts(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "dir/sub/f", "0123456789")
	m.put(t, "single", "a file that is a mount point")
	whole := rig.Mkdir(t, parent(m.old), "whole")
	part := rig.Mkdir(t, parent(m.old), "part")
	file := parent(m.old) + "/file"
	rig.Write(t, file, "")
	rig.Bind(t, m.old, whole)
	rig.Bind(t, m.old+"/dir/sub", part)
	rig.Bind(t, m.old+"/single", file)
	p := rig.StartPuppet(t)
	fds := map[string]int{}
	for _, path := range []string{m.old + "/dir/sub/f", whole + "/dir/sub/f", part + "/f", file} {
		fds[path] = p.Open(path, unix.O_RDONLY)
	}
	p.Chdir(part)

	m.swap(t)
	for path, fd := range fds {
		if got := p.Link(fd); got != path {
			t.Errorf("the descriptor of %s is now %s", path, got)
		}
		if got := p.Fstat(fd).Dev; got != m.newDev {
			t.Errorf("the descriptor of %s is on %s, want %s", path, devName(got), devName(m.newDev))
		}
	}
	for at, root := range map[string]string{whole: "/", part: "/dir/sub", file: "/single"} {
		info := rig.MountAt(t, 0, at)
		if info == nil || unix.Mkdev(uint32(info.Major), uint32(info.Minor)) != m.newDev || info.Root != root {
			t.Errorf("at %s is %+v, want %s of %s", at, info, root, devName(m.newDev))
		}
	}
	if got := p.Getcwd(); got != part {
		t.Errorf("cwd %s, want %s", got, part)
	}
	if b, err := os.ReadFile(part + "/f"); err != nil || string(b) != "0123456789" {
		t.Errorf("read through the part: %q, %v", b, err)
	}
}

func TestSwapKeepsMountFlags(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	ro := rig.Mkdir(t, parent(m.old), "ro")
	rig.Bind(t, m.old, ro)
	if err := unix.Mount("", ro, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		t.Fatal(err)
	}
	before := rig.MountAt(t, 0, ro).Options

	m.swap(t)
	if got := rig.MountAt(t, 0, ro).Options; got != before {
		t.Errorf("options %s, want %s", got, before)
	}
	if err := os.WriteFile(ro+"/new", nil, 0o644); err == nil {
		t.Error("a read-only mount was written through")
	}
}

func TestSwapOfOneProcessOnly(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	moving, staying := rig.StartPuppet(t), rig.StartPuppet(t)
	fd, other := moving.Open(m.old+"/f", unix.O_RDONLY), staying.Open(m.old+"/f", unix.O_RDONLY)
	moving.Read(fd, 2)

	m.swap(t, "--pid", itoa(moving.PID))
	if got := moving.Fstat(fd).Dev; got != m.newDev {
		t.Errorf("the process named is on %s, want %s", devName(got), devName(m.newDev))
	}
	if got := moving.Read(fd, 2); got != "23" {
		t.Errorf("it reads on with %q", got)
	}
	if got := staying.Fstat(other).Dev; got != m.oldDev {
		t.Errorf("the other is on %s, want %s", devName(got), devName(m.oldDev))
	}
	if got := devAt(t, 0, m.old); got != m.oldDev {
		t.Errorf("the mount point shows %s, want %s as before", devName(got), devName(m.oldDev))
	}
}

func TestSwapOfATreeOnly(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	top, stranger := rig.StartPuppet(t), rig.StartPuppet(t)
	child := top.Spawn(fork)
	grandchild := child.Spawn(fork)
	fd := grandchild.Open(m.old+"/f", unix.O_RDONLY)
	childFD := child.Open(m.old+"/f", unix.O_RDONLY)
	other := stranger.Open(m.old+"/f", unix.O_RDONLY)

	m.swap(t, "--tree", itoa(child.PID))
	for _, c := range []struct {
		p    *rig.Puppet
		fd   int
		want uint64
	}{{child, childFD, m.newDev}, {grandchild, fd, m.newDev}, {stranger, other, m.oldDev}} {
		if got := c.p.Fstat(c.fd).Dev; got != c.want {
			t.Errorf("process %d is on %s, want %s", c.p.PID, devName(got), devName(c.want))
		}
	}
}

// TestSwapOfAMountThatNobodyUses changes the mount point only.
func TestSwapOfAMountThatNobodyUses(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	if r := m.swap(t); r.Processes != 0 || r.StoppedUS != 0 || r.TotalUS <= 0 {
		t.Errorf("reported %+v, want no process, nobody stopped, and some time in all", r)
	}
}
