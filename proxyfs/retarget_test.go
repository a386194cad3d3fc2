package proxyfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// readAt reads an open file's beginning.
func readAt(f *os.File) (string, error) {
	buf := make([]byte, 100)
	n, err := unix.Pread(int(f.Fd()), buf, 0)
	return string(buf[:max(n, 0)]), err
}

func wantRead(t *testing.T, f *os.File, want string) {
	t.Helper()
	if got, err := readAt(f); err != nil || got != want {
		t.Fatalf("%s reads %q, %v, want %q", f.Name(), got, err, want)
	}
}

func openFile(t *testing.T, flags int, path ...string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(path...), flags, 0)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRetarget(t *testing.T) {
	m := mount(t, Options{})
	next := openTemp(t)
	populate(t, m.dir, "same", "missing", "type", "deleted", "renamed")
	populate(t, filepath.Join(m.dir, "sub", "deep"), "file")
	populate(t, next, "same", "other")
	populate(t, filepath.Join(next, "sub", "deep"), "file")
	writeFile(t, "same, next", next, "same")
	writeFile(t, "file, next", next, "sub", "deep", "file")
	writeFile(t, "moved, next", next, "sub", "moved")
	check(t, os.Mkdir(filepath.Join(next, "type"), 0o755))

	same := openFile(t, unix.O_RDWR, m.mnt, "same")
	node := stat(t, m.mnt, "same")
	missing := openFile(t, unix.O_RDONLY, m.mnt, "missing")
	typ := openFile(t, unix.O_RDONLY, m.mnt, "type")
	deleted := openFile(t, unix.O_RDWR, m.mnt, "deleted")
	check(t, os.Remove(filepath.Join(m.mnt, "deleted")))
	deletedBelow := openFile(t, unix.O_RDWR, m.mnt, "renamed")
	check(t, os.Rename(filepath.Join(m.mnt, "renamed"), filepath.Join(m.mnt, "sub", "moved")))
	file := openFile(t, unix.O_RDONLY, m.mnt, "sub", "deep", "file")
	cwd := openDir(t, filepath.Join(m.mnt, "sub"))

	former := m.dir
	m.retarget(t, next)
	// Nothing of the former directory is held but the deleted file.
	for _, fd := range linksBelow(t, former) {
		if !strings.HasSuffix(fd, " (deleted)") {
			t.Errorf("still open: %s", fd)
		}
	}

	wantRead(t, same, "same, next")
	wantRead(t, file, "file, next")
	wantRead(t, deletedBelow, "moved, next")
	wantRead(t, deleted, "deleted")
	_, err := deleted.WriteAt([]byte("DELETED"), 0)
	check(t, err)
	wantRead(t, deleted, "DELETED")
	for _, f := range []*os.File{missing, typ} {
		_, err := readAt(f)
		wantErrno(t, "read of "+f.Name(), err, unix.ESTALE)
		var st unix.Stat_t
		wantErrno(t, "fstat of "+f.Name(), unix.Fstat(int(f.Fd()), &st), unix.ESTALE)
	}
	if _, err := same.WriteAt([]byte("SAME"), 0); err != nil {
		t.Error(err)
	}
	wantFile(t, "SAME, next", next, "same")
	wantFile(t, "same", former, "same")
	if st := stat(t, m.mnt, "type"); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("type has mode %o", st.Mode)
	}
	if st := stat(t, m.mnt, "same"); st.Ino == node.Ino || st.Ino != stat(t, next, "same").Ino {
		t.Errorf("same is inode %d, before %d", st.Ino, node.Ino)
	}
	fd, err := unix.Openat(int(cwd.Fd()), "deep/file", unix.O_RDONLY, 0)
	check(t, err)
	unix.Close(fd)

	// What was missing in one directory is there again in the next.
	m.retarget(t, former)
	wantRead(t, missing, "missing")
	wantRead(t, typ, "type")
	wantRead(t, same, "same")
	wantRead(t, deleted, "DELETED")
}

// linksBelow returns this process's descriptors on files of dir.
func linksBelow(t *testing.T, dir string) (links []string) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	for _, fd := range fds {
		link, err := os.Readlink("/proc/self/fd/" + fd.Name())
		var own unix.Stat_t
		isMine := err == nil && strings.HasPrefix(link, dir)
		if isMine && unix.Stat("/proc/self/fd/"+fd.Name(), &own) == nil && !opath(t, fd.Name()) {
			links = append(links, link)
		}
	}
	return links
}

// opath tells whether one of this process's descriptors is one of openDir's,
// which only tests have on directories below TMPDIR by O_PATH|O_DIRECTORY.
func opath(t *testing.T, fd string) bool {
	t.Helper()
	info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
	check(t, err)
	var pos, flags int
	fmt.Sscanf(string(info), "pos:\t%d\nflags:\t%o", &pos, &flags)
	return flags&(unix.O_PATH|unix.O_DIRECTORY) == unix.O_PATH|unix.O_DIRECTORY
}

// A file system that is left can be unmounted, if nothing on it is deleted.
func TestRetargetLetsGo(t *testing.T) {
	top := openTemp(t)
	dir := filepath.Join(top, "dir")
	check(t, os.Mkdir(dir, 0o755))
	check(t, unix.Mount("proxyfs-test", dir, "tmpfs", 0, "mode=755"))
	m := mountDir(t, dir, filepath.Join(top, "mnt"), Options{})
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) }) // if it fails before it has
	m.given.Close()
	populate(t, filepath.Join(dir, "sub"), "a", "b")
	next := filepath.Join(top, "next")
	populate(t, filepath.Join(next, "sub"), "a", "b")

	a := openFile(t, unix.O_RDWR, m.mnt, "sub", "a")
	check(t, unix.FcntlFlock(a.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	check(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	d := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt, "sub")
	readDir(t, d, 1)
	m.retarget(t, next)
	check(t, unix.Unmount(dir, 0))
	if lost := m.LostLocks(); len(lost) > 0 {
		t.Errorf("locks lost: %v", lost)
	}
	l := newLocker(t, next, "sub", "a")
	l.want("EAGAIN", "lock posix read 0 0")
	l.want("EAGAIN", "lock flock read")
	check(t, unix.FcntlFlock(a.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	l.want("ok", "lock posix read 0 0")
	check(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	l.want("ok", "lock flock read")
}

func TestRetargetReportsLostLocks(t *testing.T) {
	m := mount(t, Options{})
	next := openTemp(t)
	populate(t, m.dir, "kept", "taken", "gone")
	populate(t, next, "kept", "taken")
	a := newLocker(t, m.mnt, "kept")
	a.want("ok", "lock posix write 0 10")
	a.want("ok", "lock posix read 20 0")
	b := newLocker(t, m.mnt, "taken")
	b.want("ok", "lock ofd write 5 5")
	b.want("ok", "lock flock write")
	c := newLocker(t, m.mnt, "gone")
	c.want("ok", "lock posix read 1 1")
	other := newLocker(t, next, "taken")
	other.want("ok", "lock posix read 7 1")
	other.want("ok", "lock flock read")

	m.retarget(t, next)
	var got []string
	for _, l := range m.LostLocks() {
		got = append(got, l.String())
	}
	slices.Sort(got)
	want := []string{
		"gone: read lock of process " + c.pid + " on bytes 1 to 1: stale file handle",
		"taken: write lock (flock): resource temporarily unavailable",
		"taken: write lock of process " + b.pid + " on bytes 5 to 9: resource temporarily unavailable",
	}
	if !slices.Equal(got, want) {
		t.Errorf("lost:\n%q, want\n%q", got, want)
	}
	o := newLocker(t, m.mnt, "kept")
	o.want("EAGAIN", "lock posix read 9 1")
	o.want("EAGAIN", "lock posix write 1000 1")
	o.want("ok", "lock posix write 10 10")

	// Back where all are there and free again, nothing is lost.
	other.end()
	m.retarget(t, m.dir)
	if lost := m.LostLocks(); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	newLocker(t, m.dir, "taken").want("EAGAIN", "lock flock read")
}

// A directory is read on where it was, whatever the order in the next one: no
// name is missed, and none comes twice.
func TestRetargetWhileReadingADirectory(t *testing.T) {
	m := mount(t, Options{})
	next := openTemp(t)
	files := numbered("file-with-a-name-", 600)
	populate(t, filepath.Join(m.dir, "d"), files...)
	backwards := slices.Clone(files)
	slices.Reverse(backwards)
	populate(t, filepath.Join(next, "d"), append(backwards[:500:500], numbered("new-", 10)...)...)

	fd := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt, "d")
	first := readDir(t, fd, 200)
	middle, last := first[50], first[len(first)-1]
	m.retarget(t, next)
	rest := readDir(t, fd, 0)
	count := make(map[string]int)
	for _, name := range names(append(slices.Clone(first), rest...)) {
		count[name]++
	}
	for _, name := range append(backwards[:500:500], numbered("new-", 10)...) {
		if count[name] != 1 {
			t.Errorf("%s came %d times", name, count[name])
		}
	}
	again := func(pos uint64) []dirent { seek(t, fd, pos); return readDir(t, fd, 0) }
	if got := again(last.cookie); !slices.Equal(got, rest) {
		t.Errorf("after the position of %s come %d entries, want %d", last.name, len(got), len(rest))
	}
	want := slices.DeleteFunc(names(first[51:]), func(name string) bool {
		_, err := os.Lstat(filepath.Join(next, "d", name))
		return err != nil
	})
	if got := names(again(middle.cookie)); !slices.Equal(got, append(want, names(rest)...)) {
		t.Errorf("after the position of %s come %d entries, want %d", middle.name, len(got), len(want)+len(rest))
	}
}

func TestRetargetToWhatIsNoDirectory(t *testing.T) {
	m := mount(t, Options{})
	populate(t, m.dir, "f")
	f := openFile(t, unix.O_RDONLY, m.mnt, "f")
	no, err := os.Open(filepath.Join(m.dir, "f"))
	check(t, err)
	defer no.Close()
	wantErrno(t, "Retarget", m.Retarget(no), unix.ENOTDIR)
	wantRead(t, f, "f")
}

// Hard links that are different files in the next directory: the node goes by
// its latest name, and the other name is another node.
func TestRetargetSplitsHardLinks(t *testing.T) {
	m := mount(t, Options{})
	next := openTemp(t)
	populate(t, m.dir, "a")
	check(t, os.Link(filepath.Join(m.dir, "a"), filepath.Join(m.dir, "b")))
	populate(t, next, "a", "b")
	stat(t, m.mnt, "b")
	a := openFile(t, unix.O_RDONLY, m.mnt, "a")
	m.retarget(t, next)
	wantRead(t, a, "a")
	wantFile(t, "b", m.mnt, "b")
	wantFile(t, "a", m.mnt, "a")
	wantRead(t, a, "a")
}

// A thousand times to and fro, with files and directories open, written to and
// deleted: every byte is where it belongs, and no descriptor is left over.
func TestThousandRetargets(t *testing.T) {
	m := mount(t, Options{})
	dirs := []string{m.dir, openTemp(t)}
	for _, dir := range dirs {
		populate(t, filepath.Join(dir, "sub"), numbered("f", 20)...)
	}
	var files []*os.File
	for i := 0; i < 20; i++ {
		files = append(files, openFile(t, unix.O_RDWR, m.mnt, "sub", fmt.Sprint("f", i)))
	}
	d := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt, "sub")
	writeFile(t, "deleted", m.mnt, "deleted")
	deleted := openFile(t, unix.O_RDWR, m.mnt, "deleted")
	check(t, os.Remove(filepath.Join(m.mnt, "deleted")))
	check(t, unix.Flock(int(files[0].Fd()), unix.LOCK_EX))
	check(t, unix.FcntlFlock(files[1].Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))

	opened := []*os.File{openDir(t, dirs[0]), openDir(t, dirs[1])}
	var before int
	for i := 0; i <= 1000; i++ {
		now := dirs[i%2]
		check(t, m.Retarget(opened[i%2]))
		for _, id := range m.Nodes() {
			m.server.InodeNotify(id, 0, -1)
		}
		if lost := m.LostLocks(); len(lost) > 0 {
			t.Fatalf("lost: %v", lost)
		}
		for j, f := range files {
			content := fmt.Sprintf("%06d-%02d", i, j)
			_, err := f.WriteAt([]byte(content), 0)
			check(t, err)
			wantRead(t, f, content)
		}
		wantFile(t, fmt.Sprintf("%06d-%02d", i, i%20), now, "sub", fmt.Sprint("f", i%20))
		seek(t, d, 0)
		if n := len(readDir(t, d, 0)); n != 22 {
			t.Fatalf("%d entries", n)
		}
		wantRead(t, deleted, "deleted")
		if i == 0 {
			before = descriptors(t, dirs[0]) + descriptors(t, dirs[1])
		}
	}
	eventually(t, "there are as many descriptors as in the beginning", func() bool {
		return descriptors(t, dirs[0])+descriptors(t, dirs[1]) == before
	})
}
