package fdpass

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// MaxFiles is how many descriptions one message may carry (SCM_MAX_FD,
// include/net/scm.h).
const MaxFiles = 253

// Channel is a socket pair in a process that runs a program.
type Channel struct {
	program  *ptrace.Program
	pair     ptrace.Ref // [2]int32: theirs, then ours
	paired   ptrace.Ref // uint32: 0 until the pair is there
	out      ptrace.Label
	messages [][]*os.File
	end      int // our end; -1 until it was taken
}

// Offsets in struct msghdr, and the room for a descriptor's number before it is
// known: closing -1 does nothing.
const (
	msghdrSize    = int(unsafe.Sizeof(unix.Msghdr{}))
	msghdrIov     = int(unsafe.Offsetof(unix.Msghdr{}.Iov))
	msghdrIovlen  = int(unsafe.Offsetof(unix.Msghdr{}.Iovlen))
	msghdrControl = int(unsafe.Offsetof(unix.Msghdr{}.Control))
	msghdrCtllen  = int(unsafe.Offsetof(unix.Msghdr{}.Controllen))
	iovecSize     = int(unsafe.Sizeof(unix.Iovec{}))
	iovecLen      = int(unsafe.Offsetof(unix.Iovec{}.Len))
)

var noFD = []byte{0xff, 0xff, 0xff, 0xff}

// patience is how long the process waits for a message, in seconds: if the
// tracer dies before it has sent, the program must end all the same. A socket's
// own time limit leaves the call that the thread was interrupted in alone,
// which that of ppoll would not.
const patience = 10

// include/uapi/linux/futex.h.
const (
	futexWakeOp = 5       // FUTEX_WAKE_OP
	futexStore1 = 1 << 12 // FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)
)

// New begins a channel at this point of the program. Calls added after it go
// to the channel's end when they fail, which [Channel.Finish] makes.
func New(p *ptrace.Program) *Channel {
	c := &Channel{program: p, end: -1, out: p.Label()}
	c.pair = p.Data(bytes.Repeat(noFD, 2))
	p.FailTo(c.out)
	p.Syscall(unix.SYS_SOCKETPAIR, ptrace.Const(unix.AF_UNIX),
		ptrace.Const(unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC), ptrace.Const(0), c.pair).Name("socketpair")
	limit := make([]byte, unsafe.Sizeof(unix.Timeval{}))
	binary.NativeEndian.PutUint64(limit, patience)
	p.Syscall(unix.SYS_SETSOCKOPT, c.pair.Int32(), ptrace.Const(unix.SOL_SOCKET), ptrace.Const(unix.SO_RCVTIMEO),
		p.Data(limit), ptrace.Const(uint64(len(limit)))).Name("setsockopt")
	// The numbers are written before the descriptors are installed
	// (net/socket.c __sys_socketpair), so a word of its own says that they
	// are: FUTEX_WAKE_OP stores it and wakes who waits for it.
	c.paired = p.Zero(4)
	p.Syscall(unix.SYS_FUTEX, c.paired, ptrace.Const(futexWakeOp), ptrace.Const(1), ptrace.Const(0),
		c.paired, ptrace.Const(futexStore1)).Name("futex")
	return c
}

// Receive adds the receipt of these descriptions, at most [MaxFiles], and
// returns where the numbers of their descriptors (close-on-exec) are then.
// Whoever does not close them in the program leaves them in the process.
func (c *Channel) Receive(files []*os.File) []ptrace.Ref {
	p, n := c.program, len(files)
	c.messages = append(c.messages, files)
	control := make([]byte, unix.CmsgSpace(4*n))
	for i := range n {
		copy(control[unix.CmsgLen(0)+4*i:], noFD)
	}
	ctl := p.Data(control)
	iovec := make([]byte, iovecSize)
	binary.NativeEndian.PutUint64(iovec[iovecLen:], 4)
	iov := p.Data(iovec)
	p.PutAddress(iov, p.Zero(4))
	header := make([]byte, msghdrSize)
	binary.NativeEndian.PutUint64(header[msghdrIovlen:], 1)
	binary.NativeEndian.PutUint64(header[msghdrCtllen:], uint64(len(control)))
	hdr := p.Data(header)
	p.PutAddress(hdr.Add(msghdrIov), iov)
	p.PutAddress(hdr.Add(msghdrControl), ctl)
	p.Syscall(unix.SYS_RECVMSG, c.pair.Int32(), hdr, ptrace.Const(unix.MSG_CMSG_CLOEXEC)).Name("recvmsg")

	fds := make([]ptrace.Ref, n)
	for i := range fds {
		fds[i] = ctl.Add(unix.CmsgLen(0) + 4*i)
	}
	// Fewer than sent (a full table: MSG_CTRUNC) shows in cmsg_len. A call
	// that must fail (EBADF) then ends the program, since a branch would end
	// it without saying why.
	whole := p.Label()
	p.BranchEqual(ctl, uint32(unix.CmsgLen(4*n)), whole)
	for _, fd := range fds {
		p.Syscall(unix.SYS_CLOSE, fd.Int32()).Ignore()
	}
	p.Syscall(unix.SYS_CLOSE, ptrace.Int(-1)).Name("recvmsg of " + strconv.Itoa(n) + " descriptors: too few arrived")
	p.Bind(whole)
	return fds
}

// Finish ends the channel at this point of the program, where all that failed
// goes on as well: its descriptors are closed.
func (c *Channel) Finish() {
	p := c.program
	p.Bind(c.out)
	p.Syscall(unix.SYS_CLOSE, c.pair.Int32()).Ignore()
	p.Syscall(unix.SYS_CLOSE, c.pair.Add(4).Int32()).Ignore()
}

// Supply sends, once the program runs as b in process pid, all that it will
// receive. A program that has failed before is no error: [ptrace.Batch.Wait]
// says why.
func (c *Channel) Supply(ctx context.Context, b *ptrace.Batch, pid int) error {
	told, err := b.Await32(ctx, c.paired, 0)
	if err != nil {
		return fmt.Errorf("waiting for the socket pair of process %d: %w", pid, err)
	}
	if told == 0 {
		return nil
	}
	ours := int(int32(b.Load32(c.pair.Add(4))))
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening a pidfd of process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	if c.end, err = unix.PidfdGetfd(pidfd, ours, 0); err != nil {
		return fmt.Errorf("taking descriptor %d of process %d: %w", ours, pid, err)
	}
	for _, files := range c.messages {
		fds := make([]int, len(files))
		for i, f := range files {
			raw, err := f.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return fmt.Errorf("sending %s to process %d: %w", f.Name(), pid, err)
			}
		}
		err := unix.Sendmsg(c.end, noFD, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil // it could not use what came before
		}
		if err != nil {
			return fmt.Errorf("sending %d descriptions to process %d: %w", len(fds), pid, err)
		}
	}
	return nil
}

// Close gives our end back.
func (c *Channel) Close() {
	if c.end >= 0 {
		unix.Close(c.end)
		c.end = -1
	}
}
