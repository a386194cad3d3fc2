package fusedev

import (
	"fmt"
	"os"

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
func Mount(source string) (*Conn, *Detached, error) {
	// Blocking: each reader waits in read(2) on a thread of its own, which
	// costs one system call a request where polling costs three.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening /dev/fuse: %w", err)
	}
	d, dev, err := mountOn(fd, source)
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	return &Conn{fd: fd, dev: dev, ended: make(chan struct{})}, d, nil
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

// Close drops the reference. A mount that was never attached goes away, and
// its connection ends.
func (d *Detached) Close() error { return d.file.Close() }
