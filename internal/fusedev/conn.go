package fusedev

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxWrite is the most data, in bytes, that one READ or WRITE carries: what
// the kernel allows by default (256 pages, fs/fuse/fuse_i.h
// FUSE_MAX_MAX_PAGES).
const MaxWrite = 1 << 20

// Conn is one FUSE connection.
type Conn struct {
	fd      int
	dev     uint64
	ended   chan struct{}
	readers readers
}

// Mount makes a new connection and the mount that it serves, not attached
// anywhere yet: the caller starts to serve it, then attaches it, so that
// nobody ever meets a mount without a server. source is what the first field
// of mountinfo's super options shows ("spfs").
func Mount(source string) (*Conn, *Detached, error) { return MountWith(ownOptions(source)) }

// MountWith is Mount with the options given.
func MountWith(o Options) (*Conn, *Detached, error) {
	// Blocking: each reader waits in read(2) on a thread of its own, which
	// costs one system call a request where polling costs three.
	fd, err := openDevice()
	if err != nil {
		return nil, nil, err
	}
	d, dev, err := mountOn(fd, o)
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	return &Conn{fd: fd, dev: dev, ended: make(chan struct{})}, d, nil
}

// ErrEnded is of a device whose connection has ended.
var ErrEnded = errors.New("its FUSE connection has ended")

// Unmounted tells whether a device was never mounted, and so has no connection
// (fs/fuse/dev.c fuse_dev_ioctl_clone). Of one that has ended the error is
// ErrEnded.
func Unmounted(device *os.File) (bool, error) {
	clone, err := Clone(device)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) { // the latter before Linux 6.16
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer clone.Close()
	// fuse_dev_poll
	fds := []unix.PollFd{{Fd: int32(clone.fd)}}
	for {
		_, err = unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("asking for the state of the FUSE connection: %w", err)
	}
	if fds[0].Revents&unix.POLLERR != 0 {
		return false, ErrEnded
	}
	return false, nil
}

// MountDevice makes a mount of the connection of device, which others may have
// too. If that is Unmounted, somebody has to answer INIT then. If not, it has a
// superblock already, whose options stay as they are, for as long as somebody
// uses it (fs/fuse/inode.c fuse_get_tree, Linux 5.15).
func MountDevice(device *os.File, o Options) (d *Detached, err error) {
	raw, err := device.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("mounting the FUSE device: %w", err)
	}
	if cerr := raw.Control(func(fd uintptr) { d, _, err = mountOn(int(fd), o) }); cerr != nil {
		err = cerr
	}
	return d, err
}

func openDevice() (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/fuse: %w", err)
	}
	return fd, nil
}

// devIocClone is FUSE_DEV_IOC_CLONE: _IOR(229, 0, uint32_t).
const devIocClone = 0x8004e500

// Clone makes another device of the connection that device is a descriptor
// of. All devices take requests from one queue, and what was read through one
// must be answered through it. Whatever the original's descriptor is set to
// (O_NONBLOCK), and whoever else has it, the clone is the caller's own.
func Clone(device *os.File) (*Conn, error) {
	raw, err := device.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cloning the FUSE device: %w", err)
	}
	fd, err := openDevice()
	if err != nil {
		return nil, err
	}
	var errno unix.Errno
	if err = raw.Control(func(old uintptr) {
		arg := uint32(old)
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), devIocClone, uintptr(unsafe.Pointer(&arg)))
	}); err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cloning the FUSE device: %w", err)
	}
	return &Conn{fd: fd, ended: make(chan struct{})}, nil
}

// Clone makes another device of the same connection; see the function Clone.
func (c *Conn) Clone() (*Conn, error) {
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := Clone(f)
	if err == nil {
		n.dev = c.dev
	}
	return n, err
}

// File is another descriptor of this device: the same description.
func (c *Conn) File() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copying the descriptor of the FUSE connection: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// Dev is the st_dev of the mount, as the kernel tells it to user space.
func (c *Conn) Dev() uint64 { return c.dev }

// Ended is closed when a reader has found that the connection has ended, even
// if Serve still waits for a handler.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Close gives the descriptor back. If it was the last one, the kernel fails
// every request that waits and all later ones (ENOTCONN). Serve must have
// returned.
func (c *Conn) Close() error {
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("closing the FUSE connection: %w", err)
	}
	return nil
}

// Detached is a mount that is attached nowhere.
type Detached struct{ file *os.File }

// Attach puts the mount on the directory at, an open descriptor (O_PATH
// suffices), in the mount namespace of the caller.
func (d *Detached) Attach(at *os.File) error {
	err := unix.MoveMount(int(d.file.Fd()), "", int(at.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mounting on %s: %w", at.Name(), err)
	}
	return nil
}

// File is the mount's descriptor, to open below it. It stays d's.
func (d *Detached) File() *os.File { return d.file }

// Close drops the reference. A mount that was never attached goes away, and
// its connection ends.
func (d *Detached) Close() error { return d.file.Close() }
