package test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// fifo makes a FIFO on m.
func (m *mounts) fifo(t *testing.T, name string) {
	t.Helper()
	if err := unix.Mkfifo(m.data+"/"+name, 0o666); err != nil {
		t.Fatal(err)
	}
}

// polled is what poll(2) says of a puppet's descriptor at once.
func polled(p *rig.Puppet, fd int) int {
	b := []byte{byte(fd), 0, 0, 0, unix.POLLIN | unix.POLLOUT, 0, 0, 0}
	p.Must(unix.SYS_PPOLL, b, 1, make([]byte, 16), 0, 0)
	return int(b[6]) | int(b[7])<<8
}

func pipeSize(p *rig.Puppet, fd int) int { return p.Must(unix.SYS_FCNTL, fd, unix.F_GETPIPE_SZ, 0) }

func TestSwapKeepsFIFOs(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.fifo(t, "f")
	path := m.old + "/f"
	reader, writer := rig.StartPuppet(t), rig.StartPuppet(t)
	r := reader.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	w := writer.Open(path, unix.O_WRONLY)
	child := writer.Spawn(fork)
	w2 := child.Open(path, unix.O_RDWR)
	writer.Must(unix.SYS_FCNTL, w, unix.F_SETPIPE_SZ, 256<<10)
	text := strings.Repeat("0123456789abcdef", 100<<10/16)
	writer.Write(w, text[:60<<10])
	writer.Write(w, text[60<<10:])
	reader.Read(r, 1000) // a part of the first page
	text = text[1000:]

	if rep := m.swap(t); rep.FDs != 4 {
		t.Errorf("reported %d descriptors, want 4", rep.FDs)
	}
	m.moved(t, reader, r, "f")
	m.moved(t, writer, w, "f")
	m.moved(t, child, w2, "f")
	if got := reader.GetFlags(r) &^ 0o100000; got != unix.O_RDONLY|unix.O_NONBLOCK {
		t.Errorf("the reader has the flags %#o", got)
	}
	if got := writer.GetFlags(w) &^ 0o100000; got != unix.O_WRONLY {
		t.Errorf("the writer has the flags %#o", got)
	}
	if reader.FDFlags(r) != unix.FD_CLOEXEC {
		t.Error("close-on-exec is lost")
	}
	if !rig.SameDescription(t, writer, w, child, w) {
		t.Error("what fork shared is not shared")
	}
	if got := pipeSize(reader, r); got != 256<<10 {
		t.Errorf("the capacity is %d", got)
	}
	var got strings.Builder
	for got.Len() < len(text) {
		got.WriteString(reader.Read(r, 50<<10))
	}
	if got.String() != text {
		t.Error("what was in it is another now")
	}
	writer.Write(w, "more")
	child.Write(w2, "and more")
	if got := reader.Read(r, 100); got != "moreand more" {
		t.Errorf("read %q", got)
	}
	// Who opens it by its name is connected to the same pipe.
	late := rig.StartPuppet(t)
	lw := late.Open(path, unix.O_WRONLY|unix.O_NONBLOCK)
	late.Write(lw, "late")
	if got := reader.Read(r, 100); got != "late" {
		t.Errorf("read %q of who came late", got)
	}
	late.Close(lw)
	writer.Close(w)
	child.Close(w)
	if _, err := reader.Call(unix.SYS_READ, r, make([]byte, 1), 1); err != unix.EAGAIN {
		t.Errorf("with a writer left: %v", err)
	}
	child.Close(w2)
	if got := reader.Read(r, 10); got != "" || polled(reader, r)&unix.POLLHUP == 0 {
		t.Errorf("without writers: read %q, poll %#x", got, polled(reader, r))
	}
}

func TestSwapKeepsFIFOsOfOneSide(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	open := func(name string, flags int) int {
		return p.Open(m.old+"/"+name, flags|unix.O_NONBLOCK)
	}
	for _, name := range []string{"data", "new", "seen", "read", "packets"} {
		m.fifo(t, name)
	}
	// The writer has gone and left something.
	data := open("data", unix.O_RDONLY)
	w := open("data", unix.O_WRONLY)
	p.Write(w, "left behind")
	p.Close(w)
	// Nobody has ever written.
	virgin := open("new", unix.O_RDONLY)
	// One has, and another reader has come since.
	seen := open("seen", unix.O_RDONLY)
	w = open("seen", unix.O_WRONLY)
	p.Close(w)
	since := open("seen", unix.O_RDONLY)
	// The reader has gone.
	r := open("read", unix.O_RDONLY)
	alone := open("read", unix.O_WRONLY)
	p.Write(alone, "unread")
	p.Close(r)
	// Packets.
	packets := open("packets", unix.O_RDWR)
	p.Must(unix.SYS_FCNTL, packets, unix.F_SETFL, unix.O_DIRECT|unix.O_NONBLOCK)
	p.Write(packets, "one")
	p.Write(packets, "two")
	before := map[int]int{}
	all := []int{data, virgin, seen, since, alone, packets}
	for _, fd := range all {
		before[fd] = polled(p, fd)
	}
	if before[virgin]&unix.POLLHUP != 0 || before[seen]&unix.POLLHUP == 0 || before[since]&unix.POLLHUP != 0 {
		t.Fatalf("poll says %#x", before)
	}

	m.swap(t)
	for i, fd := range all {
		m.moved(t, p, fd, []string{"data", "new", "seen", "seen", "read", "packets"}[i])
		if got := polled(p, fd); got != before[fd] {
			t.Errorf("of descriptor %d, the %dth, poll says %#x, said %#x", fd, i, got, before[fd])
		}
	}
	if got := p.Read(data, 100); got != "left behind" {
		t.Errorf("read %q", got)
	}
	if got := p.Read(data, 100); got != "" {
		t.Errorf("read %q at the end", got)
	}
	w = open("new", unix.O_WRONLY)
	p.Write(w, "first")
	if got := p.Read(virgin, 100); got != "first" {
		t.Errorf("read %q of the first writer", got)
	}
	r = open("read", unix.O_RDONLY)
	if got := p.Read(r, 100); got != "unread" {
		t.Errorf("a new reader reads %q", got)
	}
	for _, want := range []string{"one", "two"} {
		if got := p.Read(packets, 100); got != want {
			t.Errorf("packet %q, want %q", got, want)
		}
	}
}

func TestSwapOfBlockedReaderOfFIFO(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.fifo(t, "f")
	reader, writer := rig.StartPuppet(t), rig.StartPuppet(t)
	r := reader.Open(m.old+"/f", unix.O_RDONLY|unix.O_NONBLOCK)
	w := writer.Open(m.old+"/f", unix.O_WRONLY)
	reader.Must(unix.SYS_FCNTL, r, unix.F_SETFL, 0)
	pending := reader.Start(unix.SYS_READ, r, make([]byte, 10), 10)
	rig.Await(t, 10*time.Second, func() bool { return strings.Contains(rig.KernelStack(reader.PID), "pipe_read") }, "the reader waits")

	m.swap(t)
	if pending.Done() {
		t.Fatal("the read came back")
	}
	writer.Write(w, "hello")
	if n, err := pending.Wait(); err != nil || n != 5 {
		t.Errorf("read %d bytes (%v)", n, err)
	}
}

func TestSwapLeavesFIFOs(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.fifo(t, "f")
	p, other := rig.StartPuppet(t), rig.StartPuppet(t)
	r := p.Open(m.old+"/f", unix.O_RDONLY|unix.O_NONBLOCK)
	w := p.Open(m.old+"/f", unix.O_WRONLY)
	p.Write(w, "precious")
	check := func() {
		t.Helper()
		if p.Fstat(r).Dev != m.oldDev || p.Read(r, 100) != "precious" {
			t.Error("what was in it is not there")
		}
		p.Write(w, "precious")
	}
	// Somebody uses the new one.
	for _, flags := range []int{unix.O_RDONLY | unix.O_NONBLOCK, unix.O_RDWR} {
		fd := other.Open(m.new+"/f", flags)
		m.unchangedBy(t, p, func() {
			rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "FIFO")
		})
		other.Close(fd)
		check()
	}
	// Somebody else has it, too.
	fd := other.Open(m.old+"/f", unix.O_WRONLY|unix.O_NONBLOCK)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new, "--pid", itoa(p.PID)).Refuses(t, itoa(p.PID), itoa(other.PID), "FIFO")
	})
	other.Close(fd)
	check()
	m.swap(t)
	if p.Fstat(r).Dev != m.newDev || p.Read(r, 100) != "precious" {
		t.Error("after the swap, what was in it is not there")
	}
}

func TestSwapOfFIFOInEpoll(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.fifo(t, "f")
	p := rig.StartPuppet(t)
	r := p.Open(m.old+"/f", unix.O_RDONLY|unix.O_NONBLOCK)
	w := p.Open(m.old+"/f", unix.O_WRONLY)
	ep := p.Must(unix.SYS_EPOLL_CREATE1, 0)
	p.Must(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, r, []byte{unix.EPOLLIN, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0})
	ready := func() (n, data int) {
		event := make([]byte, 12)
		n = p.Must(unix.SYS_EPOLL_PWAIT, ep, event, 1, 0, 0, 0)
		return n, int(event[4])
	}

	m.swap(t)
	if n, _ := ready(); n != 0 {
		t.Errorf("%d events of an empty pipe", n)
	}
	p.Write(w, "x")
	if n, data := ready(); n != 1 || data != 77 {
		t.Errorf("%d events, with data %d", n, data)
	}
	if got := p.Read(r, 10); got != "x" {
		t.Errorf("read %q", got)
	}
	if n, _ := ready(); n != 0 {
		t.Errorf("%d events after it was read", n)
	}
}
