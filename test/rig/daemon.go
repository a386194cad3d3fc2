package rig

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Daemon is a FUSE daemon that nobody here wrote, and its mount.
type Daemon struct {
	*Running
	Mountpoint string
	t          T
}

// serve starts a daemon that stays in the foreground and mounts at mountpoint,
// and waits until it has. When t ends the daemon is killed, its mount detached.
func serve(t T, mountpoint string, cmd *exec.Cmd) *Daemon {
	t.Helper()
	// A session of its own, so that its children can be told from ours, and
	// a terminal's ^C does not end it before its clients.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	d := &Daemon{Running: Begin(t, cmd), Mountpoint: mountpoint, t: t}
	t.Cleanup(d.Unmount)
	AwaitMount(t, mountpoint, d.ended, func() string {
		d.Kill()
		return strings.Join(cmd.Args, " ") + ": " + d.err.String()
	})
	return d
}

// Unmount detaches the daemon's mount, if it is still there.
func (d *Daemon) Unmount() {
	d.t.Helper()
	if m := MountAt(d.t, 0, d.Mountpoint); m != nil && isFUSE(m) {
		Unmount(d.t, d.Mountpoint)
	}
}

// Bindfs serves dir at mountpoint with bindfs.
func Bindfs(t T, dir, mountpoint string, options ...string) *Daemon {
	t.Helper()
	return serve(t, mountpoint, exec.Command("bindfs", append(append([]string{"-f"}, options...), dir, mountpoint)...))
}

// BindfsCommand is a shell command that serves dir where %m stands, as spfs
// restore --mount wants it: it returns when the mount is there.
func BindfsCommand(dir string) string { return "bindfs " + dir + " %m" }

// Loopback serves dir at mountpoint with go-fuse's loopback file system.
func Loopback(t T, dir, mountpoint string) *Daemon {
	t.Helper()
	return serve(t, mountpoint, exec.Command(Build(t).Loopback, dir, mountpoint))
}

// Writeback serves dir at mountpoint with fixture/writeback.c, which has the
// kernel keep what is written for a while.
func Writeback(t T, dir, mountpoint string) *Daemon {
	t.Helper()
	return serve(t, mountpoint, exec.Command(Build(t).Writeback, dir, mountpoint))
}

// Served makes, in a new directory, a directory "data" and serves it with
// bindfs at each of names. It returns the data directory and the mount points.
func Served(t T, names ...string) (data string, mountpoints []string) {
	t.Helper()
	top := Dir(t)
	data = Mkdir(t, top, "data")
	for _, n := range names {
		m := Mkdir(t, filepath.Join(top, n))
		Bindfs(t, data, m)
		mountpoints = append(mountpoints, m)
	}
	return data, mountpoints
}
