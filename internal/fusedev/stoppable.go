package fusedev

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Stop ends a ServeUntil. It owns an eventfd until Close.
type Stop struct {
	fd   int
	once sync.Once
}

// NewStop makes one that has not been told yet.
func NewStop() (*Stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	return &Stop{fd: fd}, nil
}

// Tell makes ServeUntil return after the request that it is at.
func (s *Stop) Tell() {
	s.once.Do(func() { unix.Write(s.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
}

// Wait waits until fd can be read or has failed, or until s is told, and says
// whether it was.
func (s *Stop) Wait(fd int) (told bool, err error) {
	fds := []unix.PollFd{
		{Fd: int32(s.fd), Events: unix.POLLIN},
		{Fd: int32(fd), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("waiting for the FUSE connection: %w", err)
		}
		return fds[0].Revents != 0, nil
	}
}

// Close gives the eventfd back. No ServeUntil may use it any more.
func (s *Stop) Close() error { return unix.Close(s.fd) }

// ServeUntil reads requests, one after the other, and hands each to handle
// until stop is told or the connection ends; it says which. Every request
// that it has read was handed on when it returns, so that none is lost to
// whoever reads the connection's other devices. handle answers, or does not,
// before it returns.
//
// maxWrite is what was negotiated for the connection. The device must be the
// caller's own (Mount, Clone), for it becomes one that does not block.
func (c *Conn) ServeUntil(stop *Stop, maxWrite uint32, handle func(Request)) (ended bool, err error) {
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return false, fmt.Errorf("setting O_NONBLOCK of the FUSE connection: %w", err)
	}
	// fs/fuse/dev.c fuse_dev_do_read: EINVAL if not even the largest request
	// would fit.
	buf := make([]byte, max(int(maxWrite), minReadBuffer)+PageSize)
	for {
		if told, err := stop.Wait(c.fd); told || err != nil {
			return false, err
		}
		n, err := unix.Read(c.fd, buf)
		switch {
		case err == nil:
			if req := Request(buf[:n]); req.valid() {
				handle(req)
			}
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			// As in read.
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			return true, nil
		default:
			return false, fmt.Errorf("reading from the FUSE connection: %w", err)
		}
	}
}

// minReadBuffer is FUSE_MIN_READ_BUFFER.
const minReadBuffer = 8192
