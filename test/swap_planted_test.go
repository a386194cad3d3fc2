package test

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// Somebody who may write to the new mount puts symlinks in the place of what will be
// opened there, at full speed. Nothing that they lead to is ever opened, and no
// process gets it: a run ends well, or it fails and nothing is changed.
func TestSwapAmongPlantedSymlinks(t *testing.T) {
	t.Parallel()
	const runs = 12
	top := rig.Dir(t)
	at, next, outside := rig.Mkdir(t, top, "mnt"), rig.Mkdir(t, top, "next"), rig.Mkdir(t, top, "outside")
	fill := func(dir string) {
		t.Helper()
		rig.Mkdir(t, dir, "below")
		rig.Write(t, dir+"/file", pages(4))
		rig.Write(t, dir+"/mapped", pages(4))
		if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill(outside)
	// Each mount shows a directory of its own: a daemon that works with names, and
	// is not told of what is renamed by another, follows symlinks itself.
	serve := func(name, at string) *rig.Daemon {
		t.Helper()
		fill(filepath.Join(top, name, "dir"))
		for link, to := range map[string]string{"link": outside, "file-link": outside + "/file"} {
			if err := os.Symlink(to, filepath.Join(top, name, link)); err != nil {
				t.Fatal(err)
			}
		}
		return rig.Bindfs(t, filepath.Join(top, name), at)
	}
	serve("data", at)

	p := rig.StartPuppet(t)
	file := p.Open(at+"/dir/file", unix.O_RDWR)
	plain := p.Open(at+"/dir/file", unix.O_RDWR|unix.O_NOFOLLOW)
	mapped := p.Open(at+"/dir/mapped", unix.O_RDONLY)
	p.Mmap(mapped, 4*page, unix.PROT_READ, unix.MAP_PRIVATE)
	p.Close(mapped)
	dir := p.Open(at+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	path := p.Open(at+"/dir/below", unix.O_PATH)
	fifo := p.Open(at+"/dir/fifo", unix.O_RDWR)
	gone := p.Open(at+"/dir/gone", unix.O_RDWR|unix.O_CREAT)
	p.Write(gone, "still here")
	p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, at+"/dir/gone", 0)
	p.Chdir(at + "/dir/below")
	fds := []int{file, plain, dir, path, fifo, gone}

	opened := watchOpens(t, outside, outside+"/below")
	swapped, failed := 0, 0
	from := devAt(t, 0, at)
	for i := 0; i < runs || failed == 0; i++ { // until one has met with a symlink
		d := serve("data"+itoa(i), next)
		to := devAt(t, 0, next)
		stop := plant(t, next)
		r := rig.Run(t, rig.Build(t).Swap, "run", "--timeout", "5s", "--from", at, "--to", next)
		stop()
		if got := opened(); got != 0 {
			t.Fatalf("%d files outside were opened:\n%s%s", got, r.Stdout, r.Stderr)
		}
		want := from
		switch r.Status {
		case 0:
			want = to
			swapped++
		case 1, 3:
			failed++
		default:
			t.Fatalf("status %d: %s", r.Status, r.Stderr)
		}
		if got := devAt(t, 0, at); got != want {
			t.Fatalf("status %d, and at %s is the file system %s, want %s: %s", r.Status, at, devName(got), devName(want), r.Stderr)
		}
		for _, fd := range fds {
			if got := p.Fstat(fd).Dev; got != want {
				t.Fatalf("status %d, and fd %d is on %s, want %s: %s", r.Status, fd, devName(got), devName(want), r.Stderr)
			}
		}
		if got := p.Getcwd(); got != at+"/dir/below" {
			t.Fatalf("status %d, and the working directory is %s: %s", r.Status, got, r.Stderr)
		}
		from = want
		d.Unmount()
	}
	t.Logf("%d runs swapped, %d did not", swapped, failed)
	// Without them it goes well.
	serve("at last", next)
	rig.Run(t, rig.Build(t).Swap, "run", "--from", at, "--to", next).OK(t)
	if got := p.Fstat(file).Dev; got != devAt(t, 0, next) {
		t.Errorf("at last the file is on %s", devName(got))
	}
	p.Seek(gone, 0, unix.SEEK_SET)
	if got := p.Read(gone, 100); got != "still here" {
		t.Errorf("the unlinked file holds %q", got)
	}
}

// plant puts the symlink link in the place of dir, and file-link in that of dir/file,
// and both back, again and again until stop is called.
func plant(t *testing.T, in string) (stop func()) {
	t.Helper()
	plantOnce := func(name, link string) {
		for _, r := range [][2]string{{name, "aside"}, {link, name}, {name, link}, {"aside", name}} {
			if err := os.Rename(filepath.Join(in, r[0]), filepath.Join(in, r[1])); err != nil {
				t.Error(err)
			}
		}
	}
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			plantOnce("dir", "link")
			plantOnce("dir/file", "file-link")
		}
	}()
	return func() { over.Store(true); <-done }
}

// watchOpens returns how to ask how often something in dirs, or one of them, has been
// opened for more than its path.
func watchOpens(t *testing.T, dirs ...string) (opened func() int) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN|unix.IN_ACCESS|unix.IN_MODIFY|unix.IN_CREATE|unix.IN_ATTRIB); err != nil {
			t.Fatal(err)
		}
	}
	opened = func() (n int) {
		b := make([]byte, 64<<10)
		for {
			got, err := unix.Read(fd, b)
			if errors.Is(err, unix.EAGAIN) {
				return n
			}
			if err != nil {
				t.Fatalf("read of inotify: %v", err)
			}
			for at := 0; at < got; n++ {
				at += unix.SizeofInotifyEvent + int((*unix.InotifyEvent)(unsafe.Pointer(&b[at])).Len)
			}
		}
	}
	// That it tells anything at all.
	f, err := os.Open(dirs[0] + "/file")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if opened() == 0 {
		t.Fatal("the watch does not see a file opened")
	}
	return opened
}
