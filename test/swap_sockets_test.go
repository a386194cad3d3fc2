package test

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// message is a struct msghdr with one byte of data, in a puppet's memory.
type message struct {
	p       *rig.Puppet
	addr    uint64
	control int // bytes of room
}

const (
	messageControl = 128
	messageData    = 1024
)

func newMessage(p *rig.Puppet, control []byte) *message {
	addr := uint64(p.Must(unix.SYS_MMAP, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0))
	b := make([]byte, messageData)
	put := func(at int, v uint64) { binary.NativeEndian.PutUint64(b[at:], v) }
	put(16, addr+64) // msg_iov
	put(24, 1)
	put(32, addr+messageControl) // msg_control
	put(40, uint64(len(control)))
	put(64, addr+messageData)
	put(72, 1)
	copy(b[messageControl:], control)
	p.Store(addr, b)
	return &message{p, addr, len(control)}
}

// pass sends descriptors of p through one of its sockets.
func pass(p *rig.Puppet, socket int, fds ...int) {
	m := newMessage(p, unix.UnixRights(fds...))
	p.Must(unix.SYS_SENDMSG, socket, m.addr, 0)
}

// take receives n descriptors.
func take(p *rig.Puppet, socket, n int) (fds []int) {
	m := newMessage(p, make([]byte, unix.CmsgSpace(4*n)))
	p.Must(unix.SYS_RECVMSG, socket, m.addr, 0)
	got := p.Load(m.addr+messageControl+uint64(unix.CmsgLen(0)), 4*n)
	for i := range n {
		fds = append(fds, int(binary.NativeEndian.Uint32(got[4*i:])))
	}
	return fds
}

func socketPair(p *rig.Puppet, kind int) (a, b int) {
	pair := make([]byte, 8)
	p.Must(unix.SYS_SOCKETPAIR, unix.AF_UNIX, kind, 0, pair)
	return int(binary.NativeEndian.Uint32(pair)), int(binary.NativeEndian.Uint32(pair[4:]))
}

// Descriptors in flight that have nothing to do with the mount are left where
// they are.
func TestSwapLeavesDescriptorsInFlight(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "content")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	null := p.Open("/dev/null", unix.O_RDWR)
	r, w := p.Pipe()
	p.Write(w, "in the pipe")
	var ends [][2]int
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		a, b := socketPair(p, kind)
		ends = append(ends, [2]int{a, b})
		if kind == unix.SOCK_STREAM {
			p.Write(a, "before")
		}
		pass(p, a, null, r)
		p.Write(a, "after")
	}

	m.swap(t)
	m.moved(t, p, fd, "f")
	for i, end := range ends {
		if i == 0 {
			if got := p.Read(end[1], 6); got != "before" {
				t.Errorf("read %q of what came before", got)
			}
		}
		got := take(p, end[1], 2)
		if l := p.Link(got[0]); l != "/dev/null" {
			t.Errorf("received %s", l)
		}
		if !rig.SameDescription(t, p, got[1], p, r) {
			t.Error("received another pipe")
		}
		if got := p.Read(end[1], 10); got != "after" {
			t.Errorf("read %q of what came after", got)
		}
	}
	if got := p.Read(r, 20); got != "in the pipe" {
		t.Errorf("read %q", got)
	}
}

func TestSwapFindsFilesInFlight(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		send  func(p *rig.Puppet, fd, null, socket int)
		names string
		takes int // what a receiver gets first
	}{
		{"alone", func(p *rig.Puppet, fd, null, socket int) { pass(p, socket, fd) }, "/f is in flight", 1},
		{"among others", func(p *rig.Puppet, fd, null, socket int) { pass(p, socket, null, fd, null) }, "/f is in flight", 3},
		{"behind others", func(p *rig.Puppet, fd, null, socket int) {
			pass(p, socket, null)
			pass(p, socket, fd)
		}, "not all can be looked at", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "content")
			p := rig.StartPuppet(t)
			p.Chdir(m.old)
			fd, null := p.Open(m.old+"/f", unix.O_RDONLY), p.Open("/dev/null", unix.O_RDWR)
			a, b := socketPair(p, unix.SOCK_STREAM)
			c.send(p, fd, null, a)
			m.unchangedBy(t, p, func() {
				rig.Run(t, rig.Build(t).Swap, "plan", "--from", m.old, "--to", m.new).Refuses(t, itoa(p.PID), "fd "+itoa(b), "in flight")
				for _, command := range [][]string{{"plan", "--ask-old"}, {"run"}} {
					rig.Run(t, rig.Build(t).Swap, append(command, "--from", m.old, "--to", m.new)...).Refuses(t, itoa(p.PID), "fd "+itoa(b), c.names)
				}
			})
			got := take(p, b, c.takes)
			if c.takes == 3 && p.Read(got[1], 10) != "content" || c.takes == 1 && c.name == "alone" && p.Read(got[0], 10) != "content" {
				t.Error("what is received is another file")
			}
			if c.name == "behind others" {
				take(p, b, 1)
			}
			m.swap(t)
		})
	}
}

// address is a struct sockaddr_un.
func address(path string) []byte { return append(append([]byte{unix.AF_UNIX, 0}, path...), 0) }

// A connection to a socket that was bound on the mount needs it no more.
func TestSwapLeavesConnections(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]int{"stream": unix.SOCK_STREAM, "packets": unix.SOCK_SEQPACKET} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "content")
			server, client := rig.StartPuppet(t), rig.StartPuppet(t)
			for _, p := range []*rig.Puppet{server, client} {
				p.Chdir(m.old)
			}
			name := address("s")
			listener := server.Must(unix.SYS_SOCKET, unix.AF_UNIX, kind, 0)
			server.Must(unix.SYS_BIND, listener, name, len(name))
			server.Must(unix.SYS_LISTEN, listener, 5)
			c := client.Must(unix.SYS_SOCKET, unix.AF_UNIX, kind, 0)
			client.Must(unix.SYS_CONNECT, c, name, len(name))
			waiting := client.Must(unix.SYS_SOCKET, unix.AF_UNIX, kind, 0)
			s := server.Must(unix.SYS_ACCEPT, listener, 0, 0)
			client.Must(unix.SYS_CONNECT, waiting, name, len(name))
			client.Write(c, "on the way")
			m.unchangedBy(t, server, func() {
				for _, command := range []string{"plan", "run"} {
					rig.Run(t, rig.Build(t).Swap, command, "--from", m.old, "--to", m.new).Refuses(t, itoa(server.PID), "fd "+itoa(listener), "bound")
				}
			})
			server.Close(listener)

			m.swap(t)
			if got := server.Getcwd(); got != m.old {
				t.Errorf("the working directory is %s", got)
			}
			if got := server.Read(s, 100); got != "on the way" {
				t.Errorf("read %q", got)
			}
			server.Write(s, "back")
			if got := client.Read(c, 100); got != "back" {
				t.Errorf("read %q", got)
			}
			peer := make([]byte, 128)
			client.Must(unix.SYS_GETPEERNAME, c, peer, []byte{128, 0, 0, 0})
			if got := string(peer[2:3]); got != "s" {
				t.Errorf("the peer is called %q", got)
			}
			server.Close(s)
			if got := client.Read(c, 100); got != "" {
				t.Errorf("read %q at the end", got)
			}
		})
	}
}
