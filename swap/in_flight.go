package swap

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// inFlight is a Unix socket in whose queue descriptors wait to be received
// (SCM_RIGHTS). Nothing but receiving them takes them out of there, so those of
// the old file system can't be exchanged, and are in the way.
type inFlight struct {
	ref   FDRef // the receiving socket
	count int   // descriptors in its queue
}

// errUnseen says that not all descriptors in a queue can be looked at.
var errUnseen = errors.New("can't be looked at")

// inFlightObstacles replaces what is not known of descriptors in flight by what
// is, in a plan that may ask the old file system: to look at a descriptor is to
// get a copy, and closing that flushes the file.
func (p *Plan) inFlightObstacles() {
	if !p.asks() {
		return
	}
	var list []Obstacle
	for _, o := range p.Obstacles {
		if o.inFlight == nil {
			list = append(list, o)
			continue
		}
		paths, err := o.inFlight.peek(p.Usage.Dev)
		for _, path := range paths {
			known := o
			known.Reason = "a descriptor of " + printable(path) + " is in flight in it, and the kernel has no way to exchange it there"
			list = append(list, known)
		}
		if err != nil && len(paths) == 0 && vanished(err) != nil {
			o.Reason = fmt.Sprintf("%d descriptors are in flight in it, and not all can be looked at (%v)", o.inFlight.count, err)
			list = append(list, o)
		}
	}
	p.Obstacles = list
}

// peekedData is how much of a stream is looked at: descriptors may come after
// data that has none.
const peekedData = 256 << 10

// peek returns the paths of the descriptors in flight that are on dev's file
// system. MSG_PEEK leaves everything where it is (net/unix/af_unix.c
// unix_peek_fds); but it shows one message with descriptors only. To see further
// ones the process's own setting, SO_PEEK_OFF, would have to be changed.
func (f *inFlight) peek(dev uint64) (paths []string, err error) {
	sock, err := takeFD(f.ref)
	if err != nil {
		return nil, err
	}
	defer unix.Close(sock)
	// Where the process peeks itself, our peek would move its place on. A
	// listening socket shows those in flight to connections not accepted yet.
	if at, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEEK_OFF); err != nil || at >= 0 {
		return nil, fmt.Errorf("SO_PEEK_OFF is set: %w", errUnseen)
	}
	if listens, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		return nil, fmt.Errorf("it listens: %w", errUnseen)
	}
	// Room for the most descriptors, credentials and a security label.
	control := make([]byte, unix.CmsgSpace(4*maxRights)+4096)
	_, n, flags, _, err := unix.Recvmsg(sock, make([]byte, peekedData), control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("recvmsg: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return nil, fmt.Errorf("recvmsg: %w", err)
	}
	seen := 0
	for i := range messages {
		fds, rights := descriptorsOf(&messages[i])
		for _, fd := range fds {
			if rights {
				seen++
				path, ours, fdErr := lookAtOwn(fd, dev)
				if ours {
					paths = append(paths, path)
				}
				err = errors.Join(err, fdErr)
			}
			unix.Close(fd)
		}
	}
	if err == nil && (seen != f.count || flags&unix.MSG_CTRUNC != 0) {
		err = fmt.Errorf("%d of %d: %w", seen, f.count, errUnseen)
	}
	return paths, err
}

// descriptorsOf are the descriptors that came with a control message, and
// whether they were in flight: a pidfd of the sender (SO_PASSPIDFD) is made when
// it is received.
func descriptorsOf(m *unix.SocketControlMessage) (fds []int, rights bool) {
	if m.Header.Level != unix.SOL_SOCKET {
		return nil, false
	}
	const scmPidfd = 4 // SCM_PIDFD of include/linux/socket.h
	switch rights = m.Header.Type == unix.SCM_RIGHTS; {
	case rights, m.Header.Type == scmPidfd:
		m.Header.Type = unix.SCM_RIGHTS // both are numbers
		fds, _ = unix.ParseUnixRights(m)
	}
	return fds, rights
}

// lookAtOwn looks at a descriptor of ours: whether it is of a file on dev, asking
// nobody. An error says that there may be more behind it: it is a socket with
// descriptors in flight itself.
func lookAtOwn(fd int, dev uint64) (path string, ours bool, err error) {
	name := strconv.Itoa(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|quiet, 0, &st); err != nil {
		return "", false, fmt.Errorf("statx: %w", err)
	}
	if device(&st) == dev {
		path, err = os.Readlink("/proc/self/fd/" + name)
		return path, true, err
	}
	text, err := os.ReadFile("/proc/self/fdinfo/" + name)
	if err != nil {
		return "", false, err
	}
	info, err := parseFDInfo(text)
	if err == nil && info.scmFDs > 0 {
		err = fmt.Errorf("a socket is in flight in which others are: %w", errUnseen)
	}
	return "", false, err
}
