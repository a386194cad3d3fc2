package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

func TestSwapKeepsOffsets(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	r := p.Open(m.old+"/f", unix.O_RDONLY)
	w := p.Open(m.old+"/f", unix.O_RDWR)
	beyond := p.Open(m.old+"/f", unix.O_RDWR)
	p.Read(r, 4)
	p.Write(w, "ab")
	p.Seek(beyond, 1<<40, unix.SEEK_SET)

	report := m.swap(t)
	if report.Processes != 1 || report.Threads != 1 || report.FDs != 3 {
		t.Errorf("reported %+v, want 1 process, 1 thread, 3 descriptors", report)
	}
	for fd, want := range map[int]int{r: 4, w: 2, beyond: 1 << 40} {
		m.moved(t, p, fd, "f")
		if got := p.Offset(fd); got != want {
			t.Errorf("fd %d: offset %d, want %d", fd, got, want)
		}
	}
	if got := p.Read(r, 100); got != "456789" {
		t.Errorf("reads on with %q", got)
	}
	p.Write(w, "c")
	m.holds(t, "f", "abc3456789")
}

func TestSwapKeepsFlags(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p := rig.StartPuppet(t)
	type held struct{ fd, flags, fdFlags int }
	var all []held
	for _, flags := range []int{
		unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR,
		unix.O_RDWR | unix.O_APPEND, unix.O_RDONLY | unix.O_NONBLOCK, unix.O_WRONLY | unix.O_SYNC,
		unix.O_RDWR | unix.O_DSYNC, unix.O_RDONLY | unix.O_NOATIME, unix.O_RDWR | unix.O_CLOEXEC,
		unix.O_PATH, unix.O_PATH | unix.O_CLOEXEC,
		// Flags that made the file what it is, and must not do so again.
		unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_TRUNC,
	} {
		fd := p.Open(m.old+"/f", flags)
		all = append(all, held{fd, p.GetFlags(fd), p.FDFlags(fd)})
	}
	// A flag set after the open.
	late := p.Open(m.old+"/f", unix.O_RDWR)
	p.Must(unix.SYS_FCNTL, late, unix.F_SETFL, unix.O_APPEND|unix.O_NONBLOCK)
	all = append(all, held{late, p.GetFlags(late), p.FDFlags(late)})
	p.Write(late, "content")

	m.swap(t)
	for _, h := range all {
		m.moved(t, p, h.fd, "f")
		if got := p.GetFlags(h.fd); got != h.flags {
			t.Errorf("fd %d: flags %#o, want %#o", h.fd, got, h.flags)
		}
		if got := p.FDFlags(h.fd); got != h.fdFlags {
			t.Errorf("fd %d: close-on-exec %d, want %d", h.fd, got, h.fdFlags)
		}
	}
	p.Write(late, "!")
	m.holds(t, "f", "content!")
}

func TestSwapKeepsSharing(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	a := p.Open(m.old+"/f", unix.O_RDWR)
	same := p.Dup(a)
	high := p.Must(unix.SYS_DUP3, a, 900, unix.O_CLOEXEC)
	other := p.Open(m.old+"/f", unix.O_RDWR) // of the same file, but another
	child := p.Spawn(fork)
	grandchild := child.Spawn(fork)
	p.Close(same) // and only the children have it still

	m.swap(t)
	type ref struct {
		p  *rig.Puppet
		fd int
	}
	shared := []ref{{p, a}, {p, high}, {child, a}, {child, same}, {child, high}, {grandchild, a}, {grandchild, same}}
	for _, r := range shared {
		m.moved(t, r.p, r.fd, "f")
		if !rig.SameDescription(t, p, a, r.p, r.fd) {
			t.Errorf("process %d, fd %d has a description of its own", r.p.PID, r.fd)
		}
		if rig.SameDescription(t, p, other, r.p, r.fd) {
			t.Errorf("process %d, fd %d shares a description that it did not share", r.p.PID, r.fd)
		}
	}
	if !rig.SameDescription(t, p, other, grandchild, other) {
		t.Error("the second description is no longer shared with the grandchild")
	}
	if got := child.Read(same, 3) + grandchild.Read(a, 3) + p.Read(high, 3); got != "012345678" {
		t.Errorf("one after the other read %q", got)
	}
	if p.FDFlags(high) != unix.FD_CLOEXEC || p.FDFlags(a) != 0 {
		t.Error("close-on-exec belongs to the descriptor, and was mixed up")
	}
	if _, err := p.Call(unix.SYS_FCNTL, same, unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("a closed descriptor is back: %v", err)
	}
}

// A description that was sent to a process that never shared anything else.
func TestSwapKeepsSharingBetweenStrangers(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	stranger := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	pidfd := stranger.Must(unix.SYS_PIDFD_OPEN, p.PID, 0)
	got := stranger.Must(unix.SYS_PIDFD_GETFD, pidfd, fd, 0)

	m.swap(t)
	m.moved(t, stranger, got, "f")
	if !rig.SameDescription(t, p, fd, stranger, got) {
		t.Error("the description is no longer shared")
	}
}

func TestSwapKeepsDirectoryPositions(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	want := map[string]bool{}
	for i := range 500 {
		name := fmt.Sprintf("entry-%03d", i)
		m.put(t, "dir/"+name, "")
		want[name] = true
	}
	p := rig.StartPuppet(t)
	begun := p.Open(m.old+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	read := p.Getdents(begun, 4096)
	if len(read) == 0 || len(read) == 500 {
		t.Fatalf("%d entries read before the swap: not in the middle", len(read))
	}
	fresh := p.Open(m.old+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	over := p.Open(m.old+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	for len(p.Getdents(over, 65536)) > 0 {
	}
	at := p.Offset(begun)

	m.swap(t)
	m.moved(t, p, begun, "dir")
	if got := p.Offset(begun); got != at {
		t.Errorf("position %d, want %d", got, at)
	}
	all := func(fd int, names []string) []string {
		for {
			more := p.Getdents(fd, 4096)
			if len(more) == 0 {
				return names
			}
			names = append(names, more...)
		}
	}
	for what, names := range map[string][]string{"the begun one": all(begun, read), "the fresh one": all(fresh, nil)} {
		seen := slices.Clone(names)
		slices.Sort(seen)
		if len(seen) != 500 || len(slices.Compact(seen)) != 500 {
			t.Errorf("%s gave %d entries, %d of them different, want 500", what, len(names), len(slices.Compact(seen)))
		}
		for _, n := range names {
			if !want[n] {
				t.Errorf("%s gave %q", what, n)
			}
		}
	}
	if more := p.Getdents(over, 65536); len(more) != 0 {
		t.Errorf("the one at its end gave %d entries more", len(more))
	}
}

func TestSwapKeepsPathDescriptors(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "dir/f", "content")
	p := rig.StartPuppet(t)
	file := p.Open(m.old+"/dir/f", unix.O_PATH)
	dir := p.Open(m.old+"/dir", unix.O_PATH|unix.O_DIRECTORY)
	top := p.Open(m.old, unix.O_PATH)

	m.swap(t)
	m.moved(t, p, file, "dir/f")
	m.moved(t, p, dir, "dir")
	m.moved(t, p, top, "")
	if _, err := p.Call(unix.SYS_READ, file, make([]byte, 1), 1); err != unix.EBADF {
		t.Errorf("read of an O_PATH descriptor: %v, want EBADF", err)
	}
	for _, at := range []struct {
		fd   int
		name string
	}{{dir, "f"}, {top, "dir/f"}} {
		fd := p.Must(unix.SYS_OPENAT, at.fd, at.name, unix.O_RDONLY, 0)
		if got := p.Read(fd, 100); got != "content" {
			t.Errorf("opened beneath fd %d: %q", at.fd, got)
		}
	}
}

func TestSwapOfAThousandDescriptors(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	p.Must(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, rlimit(4096), 0)
	fds := map[int]string{}
	for i := range 1000 {
		name := fmt.Sprintf("f%d", i)
		m.put(t, name, strings.Repeat("x", i)+name)
		fd := p.Open(m.old+"/"+name, unix.O_RDONLY)
		p.Seek(fd, i, unix.SEEK_SET)
		fds[fd] = name
	}
	if r := m.swap(t); r.FDs != 1000 {
		t.Errorf("reported %d descriptors, want 1000", r.FDs)
	}
	for fd, name := range fds {
		m.moved(t, p, fd, name)
		if got := p.Read(fd, 100); got != name {
			t.Errorf("fd %d reads %q, want %q", fd, got, name)
		}
	}
}

// rlimit is a struct rlimit64 with both limits n.
func rlimit(n uint64) []byte {
	b := make([]byte, 16)
	for i := range 8 {
		b[i], b[8+i] = byte(n>>(8*i)), byte(n>>(8*i))
	}
	return b
}

func TestSwapOfAThreadsOwnDescriptors(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	both := p.Open(m.old+"/f", unix.O_RDONLY)
	loner := p.Spawn(threadOf | unix.CLONE_FS) // no CLONE_FILES
	own := loner.Open(m.old+"/f", unix.O_RDONLY)
	loner.Seek(own, 6, unix.SEEK_SET)

	m.swap(t)
	if got := loner.Fstat(own).Dev; got != m.newDev {
		t.Errorf("the thread's own descriptor is on %s, want %s", devName(got), devName(m.newDev))
	}
	if got := loner.Read(own, 2); got != "67" {
		t.Errorf("the thread's own descriptor reads %q", got)
	}
	if got := p.Read(both, 3) + loner.Read(both, 3); got != "012345" {
		t.Errorf("the shared description reads %q", got)
	}
}

// What is not on the mount is not touched.
func TestSwapLeavesOtherDescriptors(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/f", unix.O_RDONLY)
	direct := p.Open(m.data+"/f", unix.O_RDONLY)
	already := p.Open(m.new+"/f", unix.O_RDONLY)
	null := p.Open("/dev/null", unix.O_RDWR)
	witness := p.Spawn(fork) // keeps the very descriptions
	fds, maps := rig.CountFDs(t, p.PID), rig.CountMappings(t, p.PID)

	if r := m.swap(t); r.FDs != 2 { // the child's too
		t.Errorf("reported %d descriptors, want 2", r.FDs)
	}
	for _, fd := range []int{direct, already, null} {
		if !rig.SameDescription(t, p, fd, witness, fd) {
			t.Errorf("fd %d is another description", fd)
		}
	}
	if got := p.Link(already); got != m.new+"/f" {
		t.Errorf("a descriptor of the new mount is now %s", got)
	}
	if got := rig.CountFDs(t, p.PID); got != fds {
		t.Errorf("%d descriptors, want %d", got, fds)
	}
	if got := rig.CountMappings(t, p.PID); got != maps {
		t.Errorf("%d mappings, want %d", got, maps)
	}
}
