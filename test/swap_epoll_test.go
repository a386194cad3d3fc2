package test

import (
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// epollEvent is a struct epoll_event.
func epollEvent(events, data int) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(events))
	return binary.NativeEndian.AppendUint64(b, uint64(data))
}

// ready returns the data of the events that an epoll has.
func ready(t *testing.T, p *rig.Puppet, epoll int) map[int]bool {
	t.Helper()
	b := make([]byte, 12*64)
	n := p.Must(unix.SYS_EPOLL_PWAIT, epoll, b, 64, 0, 0, 0)
	found := map[int]bool{}
	for i := range n {
		found[int(binary.NativeEndian.Uint64(b[12*i+4:]))] = true
	}
	return found
}

// registrations is what fdinfo says of an epoll, but for the inodes.
func registrations(t *testing.T, p *rig.Puppet, epoll int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, epoll))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "tfd:") {
			lines = append(lines, regexp.MustCompile(` ino:.*| pos:\S+`).ReplaceAllString(strings.TrimSpace(line), ""))
		}
	}
	slices.Sort(lines) // they come in the order of addresses
	return strings.Join(lines, "\n")
}

func TestSwapKeepsEpollRegistrations(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	m.put(t, "g", "x")
	p := rig.StartPuppet(t)
	epoll := p.Must(unix.SYS_EPOLL_CREATE1, unix.EPOLL_CLOEXEC)
	add := func(fd, events, data int) {
		t.Helper()
		p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, fd, epollEvent(events, data))
	}
	r, w := p.Pipe()
	level := p.Open(m.old+"/f", unix.O_RDONLY)
	same := p.Dup(level)
	edge := p.Open(m.old+"/f", unix.O_RDWR)
	fired := p.Open(m.old+"/g", unix.O_RDWR)
	armed := p.Open(m.old+"/g", unix.O_RDWR)
	quiet := p.Open(m.old+"/g", unix.O_RDWR)
	exclusive := p.Open(m.old+"/g", unix.O_RDWR)
	add(level, unix.EPOLLIN, 1<<40)
	add(same, unix.EPOLLIN|unix.EPOLLPRI, -1)
	add(edge, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET, 3)
	add(fired, unix.EPOLLIN|unix.EPOLLONESHOT, 4)
	add(quiet, 0, 6)
	add(r, unix.EPOLLIN|unix.EPOLLET, 7)
	ready(t, p, epoll)
	add(armed, unix.EPOLLIN|unix.EPOLLONESHOT, 5)
	add(exclusive, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, 8)
	p.Write(w, "x") // an edge that nobody has seen yet
	child := p.Spawn(fork)
	p.Close(same) // its registration stays: the child still has it
	before := registrations(t, p, epoll)

	m.swap(t)
	for fd, name := range map[int]string{level: "f", edge: "f", fired: "g", armed: "g", quiet: "g", exclusive: "g"} {
		m.moved(t, p, fd, name)
		m.moved(t, child, fd, name)
	}
	// Disarmed as it is, it is registered for what can't be left out.
	got := registrations(t, p, epoll)
	const disarmed, always = "40000000", "40000018"
	if strings.ReplaceAll(got, always, disarmed) != before || strings.Count(got, always) > 1 {
		t.Errorf("registered are\n%s\nwant\n%s", got, before)
	}
	if got, want := ready(t, p, epoll), []int{1 << 40, -1, 3, 5, 7, 8}; len(got) != len(want) {
		t.Errorf("ready are %v, want %v", got, want)
	} else {
		for _, data := range want {
			if !got[data] {
				t.Errorf("ready are %v, want %v", got, want)
			}
		}
	}
	p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_MOD, fired, epollEvent(unix.EPOLLIN, 4))
	if !ready(t, p, epoll)[4] {
		t.Error("what is armed again does not fire")
	}
	for _, fd := range []int{level, edge, fired, armed, quiet, exclusive, r} {
		p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_DEL, fd, 0)
	}
	child.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_DEL, same, 0)
	if got := registrations(t, p, epoll); got != "" {
		t.Errorf("left are\n%s", got)
	}
}

// Who waits for an epoll goes on waiting, and is woken.
func TestSwapOfEpollWaiter(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	epoll := p.Must(unix.SYS_EPOLL_CREATE1, 0)
	p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, fd, epollEvent(0, 1))
	r, w := p.Pipe()
	p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, r, epollEvent(unix.EPOLLIN, 2))
	other := p.Spawn(thread)
	waits := other.Start(unix.SYS_EPOLL_PWAIT, epoll, make([]byte, 12), 1, -1, 0, 0)

	m.swap(t)
	if waits.Done() {
		t.Fatal("the wait has ended")
	}
	p.Write(w, "x")
	if n, err := waits.Wait(); n != 1 || err != nil {
		t.Errorf("the wait returns %d (%v), want 1", n, err)
	}
	m.moved(t, p, fd, "f")
}

// A file that can't be polled there takes everyone back.
func TestSwapOfEpollThatCannotBe(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	epoll := p.Must(unix.SYS_EPOLL_CREATE1, 0)
	p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, fd, epollEvent(unix.EPOLLIN, 1))
	rig.Unmount(t, m.new)
	rig.Bind(t, m.data, m.new) // no FUSE: its regular files can't be polled
	before := registrations(t, p, epoll)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "epoll")
	})
	if got := registrations(t, p, epoll); got != before {
		t.Errorf("registered is %s, want %s", got, before)
	}
}
