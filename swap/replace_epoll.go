package swap

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// A registration with an epoll is of a description under a number
// (fs/eventpoll.c struct epoll_filefd), so it can be made for the new one only
// when that has the number: after the verdict. That it can be made is tried
// before, under the number at which the new description was received; and what
// it takes of the user's limit is what the old one gives back just before.
//
// What can't be seen of a registration is whether an edge has been reported
// already. It is reported once more: who uses EPOLLET must expect that.

// tryRegistrations makes each of t's registrations for a moment, for no event.
func (p *program) tryRegistrations(t *FDTable) {
	for _, r := range t.epolls {
		fd := p.early[r.description]
		p.Syscall(unix.SYS_EPOLL_CTL, ptrace.Int(r.epoll), ptrace.Int(unix.EPOLL_CTL_ADD), fd.Int32(), p.event(0, 0)).
			Name(fmt.Sprintf("registering %s with epoll %d", r.description.Path, r.epoll))
		p.Syscall(unix.SYS_EPOLL_CTL, ptrace.Int(r.epoll), ptrace.Int(unix.EPOLL_CTL_DEL), fd.Int32(), ptrace.Const(0)).
			Name(fmt.Sprintf("unregistering %s with epoll %d", r.description.Path, r.epoll))
	}
}

// unregister ends t's old registrations, while their numbers are the old
// descriptions.
func (p *program) unregister(t *FDTable) {
	for _, r := range t.epolls {
		p.goOn(p.Syscall(unix.SYS_EPOLL_CTL, ptrace.Int(r.epoll), ptrace.Int(unix.EPOLL_CTL_DEL), ptrace.Int(r.fd), ptrace.Const(0)).
			Name(fmt.Sprintf("unregistering fd %d with epoll %d", r.fd, r.epoll)))
	}
}

// register makes t's registrations anew.
func (p *program) register(t *FDTable) {
	for _, r := range t.epolls {
		p.goOn(p.Syscall(unix.SYS_EPOLL_CTL, ptrace.Int(r.epoll), ptrace.Int(unix.EPOLL_CTL_ADD), ptrace.Int(r.fd), p.event(r.events, r.data)).
			Name(fmt.Sprintf("registering fd %d with epoll %d", r.fd, r.epoll)))
	}
}

// event is a struct epoll_event, whose layout is the architecture's.
func (p *program) event(events uint32, data uint64) ptrace.Ref {
	b := make([]byte, unsafe.Sizeof(unix.EpollEvent{}))
	binary.NativeEndian.PutUint32(b, events)
	binary.NativeEndian.PutUint64(b[unsafe.Offsetof(unix.EpollEvent{}.Fd):], data)
	return p.Data(b)
}
