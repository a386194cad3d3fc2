package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

// The nodes of tree.
const (
	nodeDir  = 10
	nodeFile = 11
	nodeMore = 12
	nodeGone = 13
	nodeLink = 14
	nodeBusy = 15
)

// tree is the record of a small tree, with files open:
//
//	/dir/file   3 × read-write (one of them to append), 1 × read-only, and mapped
//	/dir/more   read-only
//	/dir/gone   unlinked, read-write
//	/link       a symbolic link to dir/file
//	/busy       looked up often
//	/dir        open as a directory
func tree() *Record {
	file := func(id uint64, lookups uint64, mode uint32, size uint64, names ...Name) Node {
		return Node{ID: id, Lookups: lookups, Names: names, Attr: Attr{
			Ino: id + 100, Size: size, Mode: mode, Nlink: uint32(len(names)), Blksize: 4096, Mtime: Time{1e9, 5}}}
	}
	rec := &Record{
		ID:      7,
		Devices: []Device{{Key: "file[1:2]", Flags: unix.O_RDWR}, {Key: "file[1:3]", Flags: unix.O_RDWR | unix.O_NONBLOCK, Cloned: true}},
		Init: Init{Known: true, Major: 7, Minor: 38, MaxReadahead: 65536, Flags: fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES,
			MaxBackground: 12, CongestionThreshold: 9, MaxWrite: 128 << 10, TimeGran: 1},
		Options: Options{Type: "fuse.test", Source: "source", RootMode: unix.S_IFDIR, AllowOther: true, DefaultPermissions: true},
		Statfs:  Statfs{Blocks: 1000, Bfree: 500, Bsize: 4096, NameLen: 255, Frsize: 4096},
		Nodes: []Node{
			{ID: RootID, Attr: Attr{Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}},
			file(nodeDir, 3, unix.S_IFDIR|0o755, 0, Name{RootID, "dir"}),
			file(nodeFile, 5, unix.S_IFREG|0o644, 3*4096+100, Name{nodeDir, "file"}),
			file(nodeMore, 1, unix.S_IFREG|0o644, 4096, Name{nodeDir, "more"}),
			file(nodeGone, 2, unix.S_IFREG|0o600, 5000),
			file(nodeLink, 1, unix.S_IFLNK|0o777, 8, Name{RootID, "link"}),
			file(nodeBusy, 300, unix.S_IFREG|0o644, 10, Name{RootID, "busy"}),
		},
		Handles: []Handle{
			{Node: nodeFile, FH: 0x100, Flags: unix.O_RDWR, Known: true, OpenFlags: fuse.FOPEN_KEEP_CACHE, Marked: true},
			{Node: nodeFile, FH: 0x101, Flags: unix.O_RDWR, Known: true, OpenFlags: fuse.FOPEN_KEEP_CACHE, Marked: true},
			{Node: nodeFile, FH: 0x102, Flags: unix.O_RDWR | unix.O_APPEND, Known: true, Marked: true},
			{Node: nodeFile, FH: 0x103, Flags: oLargefile, Marked: true},
			{Node: nodeFile, FH: 0x104, Flags: unix.O_RDWR, Mapped: true},
			{Node: nodeFile, FH: 0x105, Flags: 0, Mapped: true},
			{Node: nodeMore, FH: 0, Flags: 0, Marked: true},
			{Node: nodeMore, FH: 0, Flags: 0, Mapped: true},
			{Node: nodeGone, FH: 0x106, Flags: unix.O_RDWR, Marked: true},
			{Node: nodeDir, FH: 0x107, Dir: true, Flags: unix.O_DIRECTORY, Marked: true},
			{Node: nodeBusy, FH: 0x108, Flags: unix.O_WRONLY}, // nobody takes it
		},
	}
	at := func(i int) *Node { return &rec.Nodes[i] }
	at(1).Entries = []Entry{{".", 110, unix.DT_DIR, 10}, {"..", 1, unix.DT_DIR, 20}, {"file", 111, unix.DT_REG, 30}, {"more", 112, unix.DT_REG, 40}}
	at(2).Content = []Span{{0, contentOf(nodeFile, 0, 4096)}}
	at(2).Xattrs = []Xattr{{"user.a", "value"}, {"user.b", ""}}
	at(4).Unlinked, at(4).Was = true, &Name{nodeDir, "gone"}
	at(5).Target = "dir/file"
	return rec
}

func contentOf(node uint64, from, to int) []byte {
	var b []byte
	for i := from; i < to; i++ {
		b = append(b, contentAt(node, i))
	}
	return b
}

// limit ends a test that hangs.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// adopted is a record's connection, mounted at a directory.
func adopted(t *testing.T, rec *Record) (*Adopted, string) {
	t.Helper()
	a, err := Adopt(limit(t), rec, AdoptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at, err := os.OpenFile(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if err := a.Attach(at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		if err := a.Close(limit(t)); err != nil {
			t.Error(err)
		}
	})
	return a, dir
}

// open opens a path as CRIU does.
func open(t *testing.T, path string, flags int) int {
	t.Helper()
	// The way through a mark and the open are one system call, on one
	// thread. Nothing else is needed, but the runtime may not split it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("opening %s with %#o: %v", path, flags, err)
	}
	return fd
}

// peek and poke read and write memory by a system call: a fault that waits for
// a goroutine of this process would keep the garbage collector waiting, and
// that the goroutine.
func peek(t *testing.T, b []byte) []byte {
	t.Helper()
	out := make([]byte, len(b))
	local := []unix.Iovec{{Base: &out[0], Len: uint64(len(out))}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&b[0])), Len: len(b)}}
	if n, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0); err != nil || n != len(b) {
		t.Fatalf("reading memory: %d bytes, %v", n, err)
	}
	return out
}

func poke(t *testing.T, b []byte, what string) {
	t.Helper()
	in := []byte(what)
	local := []unix.Iovec{{Base: &in[0], Len: uint64(len(in))}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&b[0])), Len: len(in)}}
	if n, err := unix.ProcessVMWritev(os.Getpid(), local, remote, 0); err != nil || n != len(in) {
		t.Fatalf("writing memory: %d bytes, %v", n, err)
	}
}

// openFile is os.OpenFile, which would have the runtime's poller ask whether
// it can wait for the file: a POLL request, that keeps the garbage collector
// waiting.
func openFile(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func link(t *testing.T, fd int) string {
	t.Helper()
	l, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The whole of a restore: CRIU's part, the handover, and a daemon that goes on
// where it was.
func TestHandOver(t *testing.T) {
	rec := tree()
	d := daemonOf(t, rec)
	a, dir := adopted(t, rec)
	daemonDevice, err := unix.FcntlInt(a.Devices()[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	daemonFile := os.NewFile(uintptr(daemonDevice), "/dev/fuse")
	defer daemonFile.Close()

	file := filepath.Join(dir, "dir/file")
	marked := func(path string, i int) string { return MarkedPath(path, dir, i) }

	// A look that is closed again, and names.
	look := open(t, dir+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	if err := unix.Fchdir(look); err != nil {
		t.Error(err)
	}
	os.Chdir("/")
	unix.Close(look)
	if target, err := os.Readlink(dir + "/link"); err != nil || target != "dir/file" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if _, err := os.Stat(dir + "/dir/none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("what is not there: %v", err)
	}
	var x [16]byte
	if n, err := unix.Getxattr(file, "user.a", x[:]); err != nil || string(x[:n]) != "value" {
		t.Errorf("an attribute is %q, %v", x[:max(n, 0)], err)
	}
	if n, err := unix.Listxattr(file, x[:]); err != nil || string(x[:n]) != "user.a\x00user.b\x00" {
		t.Errorf("the attributes are %q, %v", x[:max(n, 0)], err)
	}

	// Descriptions, in an order that is not the recorded one.
	fds := map[int]int{}
	for _, i := range []int{3, 1, 2, 0} {
		fds[i] = open(t, marked(file, i), int(rec.Handles[i].Flags))
	}
	fds[6] = open(t, marked(dir+"/dir/more", 6), 0)
	fds[8] = open(t, marked(filepath.Join(dir, "dir", rec.GoneName(nodeGone)), 8), unix.O_RDWR)
	fds[9] = open(t, marked(dir+"/dir", 9), unix.O_RDONLY|unix.O_DIRECTORY)
	if _, err := unix.Seek(fds[9], 20, unix.SEEK_SET); err != nil {
		t.Error(err)
	}
	if got := link(t, fds[1]); got != file {
		t.Errorf("the file is shown as %s", got)
	}
	// Mappings: opened, mapped, closed. A page is looked at that was not
	// recorded, as when CRIU puts private pages back.
	mapOf := func(path string, flags, prot, kind int) []byte {
		fd := open(t, path, flags)
		defer unix.Close(fd)
		b, err := unix.Mmap(fd, 0, 2*4096, prot, kind)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(b) })
		return b
	}
	shared := mapOf(file, unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	private := mapOf(file, unix.O_RDONLY, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if !bytes.Equal(peek(t, private[:4096]), contentOf(nodeFile, 0, 4096)) {
		t.Error("recorded content is not there")
	}
	poke(t, private[4096:], "private")
	if peek(t, shared[4096+100:])[0] != 0 {
		t.Error("what was not recorded is not zeros") // and is now in the page cache
	}

	if err := a.HandOver(limit(t)); err != nil {
		t.Fatal(err)
	}
	d.serve(daemonFile)
	if fl, err := unix.FcntlInt(a.Devices()[1].Fd(), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK == 0 {
		t.Errorf("flags of the second device %#o, %v", fl, err)
	}

	// The daemon runs. What it is asked decides.
	if !bytes.Equal(peek(t, shared), contentOf(nodeFile, 0, 2*4096)) {
		t.Error("made-up pages are still mapped")
	}
	if string(peek(t, private[4096:4103])) != "private" {
		t.Error("a private page is lost")
	}
	for i, fd := range fds {
		h := rec.Handles[i]
		b := make([]byte, 4096)
		if !h.Dir {
			n, err := unix.Pread(fd, b, 0)
			if err != nil || !bytes.Equal(b[:n], contentOf(h.Node, 0, n)) {
				t.Errorf("reading by handle %d: %d bytes, %v", i, n, err)
			}
		}
	}
	entries := make([]byte, 4096)
	if n, err := unix.Getdents(fds[9], entries); err != nil {
		t.Error(err)
	} else if _, _, names := unix.ParseDirent(entries[:n], -1, nil); fmt.Sprint(names) != "[file more]" {
		t.Errorf("the directory goes on with %q", names)
	}
	if _, err := unix.Pwrite(fds[1], []byte("written"), 4096); err != nil {
		t.Error(err)
	}
	if got := link(t, fds[8]); got != dir+"/dir/gone (deleted)" {
		t.Errorf("the unlinked file is shown as %s", got)
	}
	if got := link(t, fds[1]); got != file {
		t.Errorf("the file is shown as %s", got)
	}
	before := d.count("LOOKUP 10")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if d.count("LOOKUP 10") == before {
		t.Error("a name of the stand-in is still believed")
	}

	if err := a.Close(limit(t)); err != nil {
		t.Error(err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	unix.Munmap(shared)
	unix.Munmap(private)
	shrink(t, dir)
	d.nothingLeft()
	d.check()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	<-d.done
}

// shrink makes the kernel forget names that nobody uses (fs/super.c
// reconfigure_super: shrink_dcache_sb).
func shrink(t *testing.T, dir string) {
	t.Helper()
	fs, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigReconfigure(fs); err != nil {
		t.Fatal(err)
	}
}

// Threads open files at once, all of one file and with the same flags: each
// gets the handle that it came for.
func TestMarksOfManyThreads(t *testing.T) {
	const threads, each = 4, 100
	rec := tree()
	rec.Handles = nil
	for i := range threads * each {
		rec.Handles = append(rec.Handles, Handle{Node: nodeFile, FH: 0x1000 + uint64(i), Flags: unix.O_RDWR, Marked: true})
	}
	d := daemonOf(t, rec)
	a, dir := adopted(t, rec)
	fds := make([]int, len(rec.Handles))
	var all sync.WaitGroup
	start := time.Now()
	for n := range threads {
		all.Add(1)
		go func() {
			defer all.Done()
			runtime.LockOSThread()
			for i := range each {
				i := i*threads + n
				var err error
				if fds[i], err = unix.Open(MarkedPath(dir+"/dir/file", dir, i), unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
					t.Errorf("handle %d: %v", i, err)
				}
			}
		}()
	}
	all.Wait()
	opened := time.Now()
	if err := a.HandOver(limit(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files opened in %v, handed over in %v", len(fds), opened.Sub(start), time.Since(opened))
	f, err := a.conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d.serve(f)
	for i, fd := range fds {
		if _, err := unix.Pwrite(fd, []byte{byte(i)}, 0); err != nil {
			t.Fatal(err)
		}
		if got := d.lastWrite(); got != rec.Handles[i].FH {
			t.Errorf("handle %d is %#x, not %#x", i, got, rec.Handles[i].FH)
		}
		unix.Close(fd)
	}
	a.Close(limit(t))
	shrink(t, dir)
	d.nothingLeft()
	d.check()
	unix.Unmount(dir, unix.MNT_DETACH)
	d.pause()
}

func TestHandOverOfManyLookups(t *testing.T) {
	for what, flags := range map[string]uint64{"singly": 0, "by listing": fuse.CAP_READDIRPLUS, "as it likes": fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO} {
		t.Run(what, func(t *testing.T) {
			rec := tree()
			rec.Init.Flags = flags
			rec.Nodes[2].Lookups = 2000
			if flags != 0 {
				rec.Nodes[2].Lookups = 200000
			}
			d := daemonOf(t, rec)
			a, dir := adopted(t, rec)
			start := time.Now()
			if err := a.HandOver(limit(t)); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d lookups: %v", rec.Nodes[2].Lookups, time.Since(start))
			f, err := a.conn.File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d.serve(f)
			a.Close(limit(t))
			shrink(t, dir)
			d.nothingLeft()
			d.check()
			unix.Unmount(dir, unix.MNT_DETACH)
			d.pause()
		})
	}
}

func TestHandOverWithOneOpenTooMany(t *testing.T) {
	rec := tree()
	a, dir := adopted(t, rec)
	fd := open(t, dir+"/dir/more", unix.O_RDWR) // it was never open so
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := a.HandOver(ctx)
	if err == nil || !strings.Contains(err.Error(), `node 12 ("more")`) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handed over: %v", err)
	}
	unix.Close(fd)
	if err := a.HandOver(limit(t)); err != nil {
		t.Error(err)
	}
}

func TestChangesAreRefused(t *testing.T) {
	for what, change := range map[string]func(dir string) error{
		"create": func(dir string) error { return os.WriteFile(dir+"/new", nil, 0o600) },
		"unlink": func(dir string) error { return os.Remove(dir + "/dir/more") },
		"chmod":  func(dir string) error { return os.Chmod(dir+"/dir/more", 0o600) },
		"write": func(dir string) error {
			f, err := openFile(dir+"/dir/file", unix.O_RDWR)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Write([]byte("x"))
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			a, dir := adopted(t, tree())
			if err := change(dir); !errors.Is(err, unix.EROFS) {
				t.Errorf("got %v", err)
			}
			<-a.Failed()
			if err := a.HandOver(limit(t)); err == nil || !strings.Contains(err.Error(), "nobody may answer") {
				t.Errorf("handed over: %v", err)
			}
		})
	}
}

func TestMarkOfAnotherFile(t *testing.T) {
	for what, open := range map[string]func(dir string) error{
		"file": func(dir string) error {
			_, err := openFile(MarkedPath(dir+"/dir/more", dir, 0), unix.O_RDWR)
			return err
		},
		"mode": func(dir string) error {
			_, err := openFile(MarkedPath(dir+"/dir/file", dir, 0), unix.O_RDONLY)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			a, dir := adopted(t, tree())
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := open(dir); !errors.Is(err, unix.EIO) {
				t.Errorf("got %v", err)
			}
			if err := a.Err(); err == nil || !strings.Contains(err.Error(), "handle 0") {
				t.Errorf("the failure is %v", err)
			}
		})
	}
}

func TestAdoptRefuses(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(*Record)
		want  error
	}{
		"a flag that no kernel has": {func(r *Record) { r.Init.Flags |= 1 << 63 }, ErrKernel},
		"io_uring":                  {func(r *Record) { r.Init.Flags |= fuse.CAP_OVER_IO_URING }, ErrKernel},
		"passthrough":               {func(r *Record) { r.Handles[0].OpenFlags = fuse.FOPEN_PASSTHROUGH }, ErrKernel},
		"a block device":            {func(r *Record) { r.Options.Type = "fuseblk.ntfs" }, ErrKernel},
		"a bad record":              {func(r *Record) { r.Nodes = nil }, ErrBadRecord},
	} {
		r := tree()
		c.spoil(r)
		if _, err := Adopt(limit(t), r, AdoptOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAdoptWithoutKnowingInit(t *testing.T) {
	rec := tree()
	rec.Init = Init{}
	for i := range rec.Nodes {
		rec.Nodes[i].Lookups = 0
	}
	a, dir := adopted(t, rec)
	f, err := openFile(dir+"/dir/file", unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 100)); n != 100 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	f.Close()
	if err := a.HandOver(limit(t)); err != nil {
		t.Error(err)
	}
}
