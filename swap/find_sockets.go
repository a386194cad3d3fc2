package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// addSockets finds Unix sockets bound to a name on the file system, in every
// network namespace: the name leads to the socket through the old inode only
// (net/unix/af_unix.c unix_find_bsd), a socket is bound once in its life, and no
// other one can take over who waits to be accepted and what is in its queue. A
// connected one needs its name no more.
func (a *assembly) addSockets(readings []*reading) {
	holders := map[uint64]FDRef{}
	seen := map[string]bool{}
	var failed []string
	bound := map[uint64]bool{}
	for _, r := range readings {
		for ino, ref := range r.kinds.sockets {
			if have, ok := holders[ino]; !ok || compareTasks(ref.Task, have.Task) < 0 {
				holders[ino] = ref
			}
		}
		if len(r.kinds.sockets) == 0 || a.some && !r.uses() {
			continue // whoever has bound one, has one: or it is in flight, which is an obstacle
		}
		path := fmt.Sprintf("/proc/%d/ns/net", r.process.PID)
		name, err := os.Readlink(path)
		if err != nil || seen[name] {
			continue
		}
		seen[name] = true
		inodes, err := boundSockets(path, a.dev)
		if err != nil && vanished(err) != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", name, err))
		}
		for _, ino := range inodes {
			bound[ino] = true
		}
	}
	for ino := range bound {
		ref, ok := holders[ino]
		if !ok {
			a.Obstacles = append(a.Obstacles, Obstacle{Resource: fmt.Sprintf("socket %d", ino), Reason: boundReason, Remedy: "close it"})
			continue
		}
		if !a.members.Has(ref.PID) {
			continue
		}
		p := a.processes[ref.PID]
		if p == nil {
			for _, r := range readings {
				if r.process.PID == ref.PID {
					p = r.process
				}
			}
		}
		a.Obstacles = append(a.Obstacles, p.obstacle(fmt.Sprintf("fd %d (Unix socket)", ref.FD), boundReason, "close it, and bind one again after"))
	}
	if len(failed) > 0 {
		a.Obstacles = append(a.Obstacles, Obstacle{
			Resource: "Unix sockets", Reason: "which are bound to names on the mount can't be told: " + strings.Join(failed, "; "),
			Remedy: "use a kernel with CONFIG_UNIX_DIAG",
		})
	}
}

const boundReason = "it is bound to a name on the mount: the kernel finds it by the old inode, and can't bind it to another"

// The parts of include/uapi/linux/unix_diag.h and sock_diag.h that are used.
const (
	sockDiagByFamily = 20
	unixDiagVFS      = 1
	unixShowVFS      = 2
	unixDiagReqLen   = 24
	unixDiagMsgLen   = 16
)

// boundSockets returns the inodes (in sockfs) of the Unix sockets of a network
// namespace that are bound to a name on dev.
func boundSockets(namespace string, dev uint64) ([]uint64, error) {
	sock, err := diagSocket(namespace)
	if err != nil {
		return nil, err
	}
	defer unix.Close(sock)
	request := make([]byte, unix.NLMSG_HDRLEN+unixDiagReqLen)
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := request[unix.NLMSG_HDRLEN:]
	body[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0)) // every state
	binary.NativeEndian.PutUint32(body[12:], unixShowVFS)
	if err := unix.Sendto(sock, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	var inodes []uint64
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(sock, buf, 0)
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		more, found, err := parseDiag(buf[:n], kernelDev(dev))
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		inodes = append(inodes, found...)
		if !more {
			return inodes, nil
		}
	}
}

// diagSocket makes a socket for sock_diag(7) in another network namespace.
func diagSocket(namespace string) (int, error) {
	ns, err := os.Open(namespace)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	fd := -1
	err = thread.Run(func() (err error) {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return err
	})
	return fd, err
}

var errDiag = errors.New("not understood")

// parseDiag reads one datagram of a dump: the inodes of sockets bound on sdev
// (the kernel's dev_t), and whether more datagrams follow.
func parseDiag(data []byte, sdev uint64) (more bool, inodes []uint64, err error) {
	for len(data) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(data[0:]))
		kind := binary.NativeEndian.Uint16(data[4:])
		if length < unix.NLMSG_HDRLEN || length > len(data) {
			return false, nil, fmt.Errorf("message of %d bytes: %w", length, errDiag)
		}
		body := data[unix.NLMSG_HDRLEN:length]
		switch kind {
		case unix.NLMSG_DONE:
			return false, inodes, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, nil, errDiag
			}
			return false, nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case sockDiagByFamily:
			if len(body) < unixDiagMsgLen {
				return false, nil, errDiag
			}
			if !connected(body) && boundOn(body[unixDiagMsgLen:], sdev) {
				inodes = append(inodes, uint64(binary.NativeEndian.Uint32(body[4:])))
			}
		}
		data = data[min(align4(length), len(data)):]
	}
	return true, inodes, nil
}

// connected says of a struct unix_diag_msg whether its socket is connected for
// good: then nobody looks for it by its name. One of datagrams is still sent to
// by that.
func connected(msg []byte) bool {
	const established = 1 // TCP_ESTABLISHED of include/net/tcp_states.h
	return msg[2] == established && (msg[1] == unix.SOCK_STREAM || msg[1] == unix.SOCK_SEQPACKET)
}

// boundOn looks for the attribute UNIX_DIAG_VFS, of an inode and a device.
func boundOn(attrs []byte, sdev uint64) bool {
	for len(attrs) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attrs[0:]))
		if length < unix.SizeofNlAttr || length > len(attrs) {
			return false
		}
		value := attrs[unix.SizeofNlAttr:length]
		if binary.NativeEndian.Uint16(attrs[2:]) == unixDiagVFS && len(value) >= 8 {
			return uint64(binary.NativeEndian.Uint32(value[4:])) == sdev
		}
		attrs = attrs[min(align4(length), len(attrs)):]
	}
	return false
}

// align4 is NLMSG_ALIGN.
func align4(n int) int { return (n + 3) &^ 3 }
