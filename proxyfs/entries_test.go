package proxyfs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHardLinksAreOneNode(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "x", m.mnt, "a")
	check(t, os.Link(filepath.Join(m.mnt, "a"), filepath.Join(m.mnt, "b")))
	check(t, os.Link(filepath.Join(m.dir, "a"), filepath.Join(m.dir, "c"))) // behind the mount
	for _, name := range []string{"a", "b", "c"} {
		if st := stat(t, m.mnt, name); st.Nlink != 3 || st.Ino != stat(t, m.dir, "a").Ino {
			t.Errorf("%s: nlink %d, inode %d", name, st.Nlink, st.Ino)
		}
	}
	if n := m.nodeCount(); n != 2 {
		t.Errorf("%d nodes, want the root and one file", n)
	}
	check(t, os.Remove(filepath.Join(m.mnt, "c")))
	wantFile(t, "x", m.mnt, "b")
}

func TestRenameFlags(t *testing.T) {
	m := mount(t, Options{})
	a, b := filepath.Join(m.mnt, "a"), filepath.Join(m.mnt, "b")
	writeFile(t, "A", a)
	check(t, os.Mkdir(b, 0o755))
	writeFile(t, "inner", b, "in")
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
	}
	wantErrno(t, "RENAME_NOREPLACE", rename(a, b, unix.RENAME_NOREPLACE), unix.EEXIST)
	check(t, rename(a, b, unix.RENAME_EXCHANGE))
	wantFile(t, "A", m.dir, "b")
	wantFile(t, "inner", m.mnt, "a", "in")
	check(t, rename(b, filepath.Join(m.mnt, "c"), unix.RENAME_WHITEOUT))
	if st := stat(t, b); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("what is left is no whiteout: mode %o, device %d", st.Mode, st.Rdev)
	}
	wantFile(t, "A", m.mnt, "c")

	f, err := os.Open(filepath.Join(m.mnt, "c"))
	check(t, err)
	defer f.Close()
	var st unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &st))
	for path, node := range m.paths() {
		if node.file.ino == st.Ino && path != "c" {
			t.Errorf("the node of c says it is %q", path)
		}
	}
}

// paths returns all nodes by what they are called.
func (f *FS) paths() map[string]*node {
	f.mu.Lock()
	defer f.mu.Unlock()
	paths := make(map[string]*node)
	for _, n := range f.nodes {
		if path, ok := f.pathLocked(n); ok {
			paths[path] = n
		}
	}
	return paths
}

func TestSpecialFiles(t *testing.T) {
	m := mount(t, Options{})
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "chr": unix.S_IFCHR, "blk": unix.S_IFBLK} {
		dev := 0
		if mode == unix.S_IFCHR || mode == unix.S_IFBLK {
			dev = int(unix.Mkdev(0x123, 0x45678))
		}
		check(t, unix.Mknod(filepath.Join(m.mnt, name), mode|0o640, dev))
		for _, side := range []string{m.mnt, m.dir} {
			if st := stat(t, side, name); st.Mode != mode|0o640 || st.Rdev != uint64(dev) {
				t.Errorf("%s: mode %o, device %#x, want %o, %#x", name, st.Mode, st.Rdev, mode|0o640, dev)
			}
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(t, err)
	defer unix.Close(fd)
	addr := &unix.SockaddrUnix{Name: filepath.Join(m.mnt, "bound")}
	check(t, unix.Bind(fd, addr))
	check(t, unix.Listen(fd, 1))
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(t, err)
	defer unix.Close(client)
	check(t, unix.Connect(client, addr))
}

// No symbolic link in the directory is followed by the server, wherever it
// points: the client's kernel follows it, from the client's root.
func TestSymlinksDoNotLeadOut(t *testing.T) {
	m := mount(t, Options{})
	outside := filepath.Dir(m.dir)
	writeFile(t, "secret", outside, "secret")
	check(t, os.Mkdir(filepath.Join(m.dir, "sub"), 0o755))
	for name, target := range map[string]string{"up": "..", "upfile": "../secret", "sub/upup": "../../secret", "self": "/proc/self/root"} {
		check(t, os.Symlink(target, filepath.Join(m.dir, name)))
	}
	fd := openDir(t, m.mnt)
	for _, path := range []string{"up/secret", "upfile", "sub/upup", "self/etc/passwd", "../secret"} {
		// Within the mount (RESOLVE_BENEATH) there is nothing there ...
		_, err := unix.Openat2(int(fd.Fd()), path, &unix.OpenHow{Resolve: unix.RESOLVE_BENEATH})
		wantErrno(t, "open "+path, err, unix.EXDEV)
	}
	// ... and no node is outside the directory.
	wantFile(t, "secret", m.mnt, "..", "secret") // the mount's parent, not the directory's
	check(t, os.WriteFile(filepath.Join(m.mnt, "sub", "f"), nil, 0o644))
	for path, n := range m.paths() {
		if real, err := os.Readlink(procPath(n.fd)); err != nil || real != filepath.Join(m.dir, path) {
			t.Errorf("node %q is %q, %v", path, real, err)
		}
	}
}

// A name that is now a directory, now a symbolic link out, is never followed
// by the server: what is written through it lands inside or nowhere.
func TestRacedSymlinkDoesNotLeadOut(t *testing.T) {
	m := mount(t, Options{})
	outside := openTemp(t)
	check(t, os.Mkdir(filepath.Join(m.dir, "real"), 0o755))
	check(t, os.Symlink(outside, filepath.Join(m.dir, "link")))
	name := filepath.Join(m.dir, "real")
	const rounds = 1500
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := 0; i < rounds; i++ {
			if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, filepath.Join(m.dir, "link"), unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	root := openDir(t, m.mnt)
	how := &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: 0o600, Resolve: unix.RESOLVE_NO_SYMLINKS}
	for i := 0; i < rounds; i++ {
		// The client allows no symbolic link: only the server could follow one.
		if fd, err := unix.Openat2(int(root.Fd()), fmt.Sprintf("real/%d", i), how); err == nil {
			unix.Close(fd)
		}
	}
	wg.Wait()
	left, err := os.ReadDir(outside)
	check(t, err)
	if len(left) > 0 {
		t.Errorf("%d files were made outside", len(left))
	}
}

func TestChangesBehindTheMountAreSeen(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "one", m.dir, "f")
	wantFile(t, "one", m.mnt, "f")
	f, err := os.Open(filepath.Join(m.mnt, "f"))
	check(t, err)
	defer f.Close()

	// Another file by the same name is another node; the open one stays.
	writeFile(t, "two!", m.dir, "new")
	check(t, os.Rename(filepath.Join(m.dir, "new"), filepath.Join(m.dir, "f")))
	wantFile(t, "two!", m.mnt, "f")
	got := make([]byte, 9)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "one" {
		t.Errorf("the open file reads %q", got[:n])
	}

	// A directory moved away under a program that is in it goes on.
	check(t, os.MkdirAll(filepath.Join(m.mnt, "d", "e"), 0o755))
	cwd := openDir(t, filepath.Join(m.mnt, "d", "e"))
	check(t, os.Rename(filepath.Join(m.dir, "d"), filepath.Join(m.dir, "moved")))
	fd, err := unix.Openat(int(cwd.Fd()), "made", unix.O_CREAT|unix.O_WRONLY, 0o644)
	check(t, err)
	unix.Close(fd)
	stat(t, m.dir, "moved", "e", "made")
	stat(t, m.mnt, "moved", "e", "made")
	if _, err := os.Stat(filepath.Join(m.mnt, "d")); !os.IsNotExist(err) {
		t.Errorf("d is still there: %v", err)
	}
}

// Every FORGET counts: when the kernel has dropped everything only the root is
// left, and not one descriptor.
func TestNodesAreForgotten(t *testing.T) {
	m := mount(t, Options{})
	before := descriptors(t, m.dir)
	for i := 0; i < 500; i++ {
		dir := filepath.Join(m.mnt, fmt.Sprint(i%10), fmt.Sprint(i%7))
		check(t, os.MkdirAll(dir, 0o755))
		writeFile(t, "x", dir, fmt.Sprint(i))
		check(t, os.Rename(filepath.Join(dir, fmt.Sprint(i)), filepath.Join(m.mnt, fmt.Sprint("r", i))))
	}
	if n := m.nodeCount(); n < 500 {
		t.Fatalf("%d nodes, want every file", n)
	}
	eventually(t, "only the root is left", func() bool {
		check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		return m.nodeCount() == 1
	})
	if after := descriptors(t, m.dir); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if m.FS.open != 0 {
		t.Errorf("%d descriptors counted", m.FS.open)
	}
}

// With room for few descriptors everything works all the same, and what comes
// back under an inode number that was used before is not taken for it.
func TestFewDescriptors(t *testing.T) {
	m := mount(t, Options{MaxDescriptors: 20})
	const files = 500
	held := make([]*os.File, 0, files)
	for i := 0; i < files; i++ {
		dir := filepath.Join(m.mnt, fmt.Sprint("d", i%25))
		check(t, os.MkdirAll(dir, 0o755))
		writeFile(t, fmt.Sprint("content ", i), dir, fmt.Sprint(i))
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprint(i)), unix.O_PATH, 0)
		check(t, err)
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		held = append(held, f)
	}
	if n := descriptors(t, m.dir); n > 60 {
		t.Errorf("%d descriptors on the directory, want about 20", n)
	}
	for i := 0; i < files; i++ {
		wantFile(t, fmt.Sprint("content ", i), procPath(int(held[i].Fd())))
		if i%2 == 0 {
			check(t, os.Remove(filepath.Join(m.dir, fmt.Sprint("d", i%25), fmt.Sprint(i))))
		}
	}
	for i := 0; i < files; i += 2 { // likely to get the inode numbers just freed
		writeFile(t, "another", m.dir, fmt.Sprint("d", i%25), fmt.Sprint(i))
	}
	for i := 0; i < files; i++ {
		got, err := os.ReadFile(procPath(int(held[i].Fd())))
		want := fmt.Sprint("content ", i)
		if i%2 == 1 && (err != nil || string(got) != want) {
			t.Fatalf("file %d: %q, %v", i, got, err)
		}
		if i%2 == 0 && err == nil && string(got) != want {
			t.Fatalf("file %d was deleted, yet it reads %q", i, got)
		}
		if i%2 == 0 {
			wantFile(t, "another", m.mnt, fmt.Sprint("d", i%25), fmt.Sprint(i))
		}
	}
}
