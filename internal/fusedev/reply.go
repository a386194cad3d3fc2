package fusedev

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// outHeader is struct fuse_out_header.
type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

// Write sends an answer that is complete, header and all. That the request
// is no longer known (the connection was aborted meanwhile) is no error.
func (c *Conn) Write(answer []byte) error {
	return c.written(unix.Write(c.fd, answer))
}

// Reply answers a request with success and what belongs to it.
func (c *Conn) Reply(req Request, data []byte) error {
	h := outHeader{Len: uint32(readHeader + len(data)), Unique: req.Unique()}
	b := make([]byte, 0, h.Len)
	b = append(b, unsafe.Slice((*byte)(unsafe.Pointer(&h)), readHeader)...)
	return c.Write(append(b, data...))
}

// Answer answers the request of that number with errno, or with plain success
// if errno is 0, and no data.
func (c *Conn) Answer(unique uint64, errno unix.Errno) error {
	h := outHeader{Len: uint32(readHeader), Error: -int32(errno), Unique: unique}
	return c.Write(unsafe.Slice((*byte)(unsafe.Pointer(&h)), readHeader))
}

func (c *Conn) written(_ int, err error) error {
	switch {
	case err == nil,
		errors.Is(err, unix.ENOENT), // fs/fuse/dev.c fuse_dev_do_write: no such request
		errors.Is(err, unix.ENODEV),
		errors.Is(err, unix.EPERM): // the connection has ended
		return nil
	}
	return fmt.Errorf("writing to the FUSE connection: %w", err)
}
