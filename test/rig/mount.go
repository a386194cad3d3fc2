package rig

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Dir returns a new directory, removed when t ends. Mounts that are still
// beneath it then are detached and reported as errors.
func Dir(t T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", strings.ReplaceAll(filepath.Base(t.Name()), " ", "_")+"-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		points := MountsBeneath(t, dir)
		for _, p := range slices.Backward(points) {
			t.Errorf("left mounted: %s", p)
			unix.Unmount(p, unix.MNT_DETACH)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("%v", err)
		}
	})
	return dir
}

// Mkdir makes the directory of that path, and its parents, and returns it.
func Mkdir(t T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	return dir
}

// Write makes a file with this content, and its parents.
func Write(t T, path, content string) {
	t.Helper()
	Mkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatalf("%v", err)
	}
}

// Public lets every user reach dir, a directory of rig's: temporary ones are
// root's alone.
func Public(t T, dir string) {
	t.Helper()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatalf("%v", err)
		}
	}
}

// MountsBeneath lists the mount points at and below dir in this mount
// namespace, in the order in which they were mounted.
func MountsBeneath(t T, dir string) (points []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, m := range infos {
		if m.Mountpoint == dir || strings.HasPrefix(m.Mountpoint, dir+"/") {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// MountsOf lists the places where the file system with that st_dev is mounted in
// this mount namespace.
func MountsOf(t T, dev uint64) (points []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, m := range infos {
		if unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == dev {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// MountAt returns the topmost mount at dir as a process sees it; pid 0 is this
// one. It is nil if nothing is mounted there.
func MountAt(t T, pid int, dir string) (found *mountinfo.Info) {
	t.Helper()
	f, err := os.Open(filepath.Join("/proc", pidDir(pid), "mountinfo"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, m := range infos {
		if m.Mountpoint == dir { // a later one is on top
			found = m
		}
	}
	return found
}

// AwaitMount waits until a FUSE file system is mounted at dir in this mount
// namespace. It fails t when ended is closed before, or nothing comes.
func AwaitMount(t T, dir string, ended <-chan struct{}, why func() string) {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer f.Close()
	for end := time.Now().Add(patience); ; {
		if m := MountAt(t, 0, dir); m != nil && isFUSE(m) {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s was not mounted: %s", dir, why())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s was not mounted within %v: %s", dir, patience, why())
		}
		// mounts_poll in fs/proc_namespace.c: POLLPRI when the table changed.
		// The limit is for the daemon's end, which is no such event.
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("poll mountinfo: %v", err)
		}
	}
}

// Unmount detaches the topmost mount at dir, if there is one.
func Unmount(t T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// Bind mounts source at target too, until t ends.
func Bind(t T, source, target string) {
	t.Helper()
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s at %s: %v", source, target, err)
	}
	t.Cleanup(func() { Unmount(t, target) })
}
