package proxyfs

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// TestPosix runs go-fuse's cases, but for one: FcntlFlockLocksFile wants a
// process's POSIX lock to be in the same process's way, which POSIX forbids and
// no local file system does; TestPosixLockIsNotInItsOwnersWay wants the
// opposite. The directory is on tmpfs, which has room for the attribute of
// XAttrLarge whatever the temporary directory is on.
func TestPosix(t *testing.T) {
	top := openTemp(t)
	dir := filepath.Join(top, "dir")
	mountTmpfs(t, dir)
	m := mountDir(t, dir, filepath.Join(top, "mnt"), Options{})
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if name == "FcntlFlockLocksFile" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				if t.Skipped() {
					t.Error("it skipped itself")
				}
			})
			dir := filepath.Join(m.mnt, name)
			check(t, os.Mkdir(dir, 0o755))
			posixtest.All[name](t, dir)
		})
	}
}

// mountTmpfs mounts a new tmpfs until the test ends.
func mountTmpfs(t *testing.T, point string) {
	t.Helper()
	check(t, os.MkdirAll(point, 0o755))
	check(t, unix.Mount("proxyfs-test", point, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { check(t, unix.Unmount(point, unix.MNT_DETACH)) })
}

func TestPosixLockIsNotInItsOwnersWay(t *testing.T) {
	m := mount(t, Options{})
	a, err := os.Create(filepath.Join(m.mnt, "file"))
	check(t, err)
	defer a.Close()
	b, err := os.OpenFile(filepath.Join(m.mnt, "file"), os.O_RDWR, 0)
	check(t, err)
	defer b.Close()
	check(t, unix.FcntlFlock(a.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	check(t, unix.FcntlFlock(b.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}))
}
