package criuhook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/internal/eintr"
)

// swrk is a CRIU that does one thing for this process ("criu swrk", as runc and
// go-criu use it), and is watched: go-criu would wait for an answer for ever
// where CRIU has died, and children that it had made live on and hold the
// socket.
type swrk struct {
	socket *os.File
	ended  chan error // why it failed, once
}

// startSwrk starts one, which waits for a request. See program for apart and
// orphans.
func startSwrk(path string, apart bool, orphans func()) (*swrk, error) {
	fds, err := unix.Socketpair(unix.AF_LOCAL, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a socket for CRIU: %w", err)
	}
	s := &swrk{socket: os.NewFile(uintptr(fds[0]), "criu"), ended: make(chan error, 1)}
	cmd, err := execSwrk(path, os.NewFile(uintptr(fds[1]), "criu"), apart)
	if err != nil {
		s.socket.Close()
		return nil, err
	}
	go func() {
		err := cmd.Wait()
		if err != nil && orphans != nil {
			orphans() // and with them the last copies of the socket
		}
		s.ended <- err
	}()
	return s, nil
}

// execSwrk starts CRIU on the other end of the socket, under the number that it
// has here: options may name others that it inherits.
func execSwrk(path string, theirs *os.File, apart bool) (*exec.Cmd, error) {
	defer theirs.Close()
	fd := int(theirs.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "swrk", strconv.Itoa(fd))
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: apart}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting CRIU: %w", err)
	}
	return cmd, nil
}

// end returns when CRIU has ended, which it does if it has nothing to do.
func (s *swrk) end() error {
	s.socket.Close() // it may wait for more
	if err := <-s.ended; err != nil {
		return fmt.Errorf("CRIU: %w", err)
	}
	return nil
}

// maxReply is more than CRIU ever sends.
const maxReply = 1 << 16

// converse makes a request, and answers what CRIU asks on the way.
func (s *swrk) converse(request *rpc.CriuReq, notify criu.Notify) error {
	message, b := request, make([]byte, maxReply)
	for {
		out, err := proto.Marshal(message)
		if err != nil {
			return err
		}
		if err := s.send(out); err != nil {
			return fmt.Errorf("asking CRIU: %w", err)
		}
		n, err := eintr.Get(func() (int, error) {
			n, _, err := unix.Recvfrom(int(s.socket.Fd()), b, 0)
			return n, err
		})
		if err != nil {
			return fmt.Errorf("waiting for CRIU: %w", err)
		}
		if n == 0 {
			return errors.New("CRIU ended without an answer")
		}
		reply := new(rpc.CriuResp)
		if err := proto.Unmarshal(b[:n], reply); err != nil {
			return fmt.Errorf("CRIU's answer: %w", err)
		}
		if !reply.GetSuccess() {
			return fmt.Errorf("operation failed (msg:%s err:%d)", reply.GetCrErrmsg(), reply.GetCrErrno())
		}
		if reply.GetType() != rpc.CriuReqType_NOTIFY {
			if reply.GetType() != request.GetType() {
				return fmt.Errorf("CRIU answered %v to %v", reply.GetType(), request.GetType())
			}
			return nil
		}
		if err := notified(notify, reply.GetNotify()); err != nil {
			return err // CRIU sees the socket closed, and undoes what it did
		}
		message = &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: proto.Bool(true)}
	}
}

// send sends a message whole. One of more than a socket takes at once by itself,
// 200 KB mostly (net/unix/af_unix.c unix_dgram_sendmsg, EMSGSIZE), comes of a tree
// that has thousands of files open.
func (s *swrk) send(message []byte) error {
	fd := int(s.socket.Fd())
	const always, beside = 64 << 10, 4 << 10
	if len(message) > always {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(message)+beside); err != nil {
			return fmt.Errorf("making room for %d bytes: %w", len(message), err)
		}
	}
	return eintr.Retry(func() error { return unix.Sendto(fd, message, unix.MSG_NOSIGNAL, nil) })
}

// notified tells of an action, if it is one that somebody here does something
// at.
func notified(to criu.Notify, what *rpc.CriuNotify) error {
	switch what.GetScript() {
	case "pre-dump":
		return to.PreDump()
	case "post-dump":
		return to.PostDump()
	case "pre-restore":
		return to.PreRestore()
	case "post-restore":
		return to.PostRestore(what.GetPid())
	case "post-resume":
		return to.PostResume()
	}
	return nil
}
