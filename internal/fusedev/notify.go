package fusedev

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// enum fuse_notify_code (include/uapi/linux/fuse.h).
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyDelete     = 6
	notifyResend     = 7
)

// expireOnly is FUSE_EXPIRE_ONLY.
const expireOnly = 1 << 0

// InvalidateAttr makes the kernel ask for a node's attributes again.
func (c *Conn) InvalidateAttr(node uint64) error {
	return c.invalInode(node, -1, 0)
}

// InvalidateData makes the kernel drop what it has cached of a node from
// offset on, size bytes or all if size is 0, attributes included. It unmaps
// the pages, writes dirty ones out first and waits for pages that are being
// read or written (mm/truncate.c invalidate_inode_pages2_range): the caller
// must not be needed to answer those.
func (c *Conn) InvalidateData(node uint64, offset, size int64) error {
	return c.invalInode(node, offset, size)
}

func (c *Conn) invalInode(node uint64, offset, size int64) error {
	n := struct {
		outHeader
		Node         uint64
		Offset, Size int64
	}{Node: node, Offset: offset, Size: size}
	n.Len = uint32(unsafe.Sizeof(n))
	n.Error = notifyInvalInode // a notification has no Unique and its code here
	return c.Write(unsafe.Slice((*byte)(unsafe.Pointer(&n)), n.Len))
}

// InvalidateEntry makes the kernel forget that the directory parent has that
// name: who has it open keeps it, and sees it as deleted (fs/fuse/dir.c
// fuse_reverse_inval_entry: d_invalidate). That it was not known is no error.
func (c *Conn) InvalidateEntry(parent uint64, name string) error {
	return c.invalEntry(parent, name, 0)
}

// ExpireEntry makes the kernel look that name of the directory parent up
// again when it is used next. Unlike InvalidateEntry it leaves the name to
// whoever has it open. The kernel must have offered FUSE_HAS_EXPIRE_ONLY at
// INIT (6.2): an older one takes it for InvalidateEntry.
func (c *Conn) ExpireEntry(parent uint64, name string) error {
	return c.invalEntry(parent, name, expireOnly)
}

func (c *Conn) invalEntry(parent uint64, name string, flags uint32) error {
	n := struct {
		outHeader
		Parent  uint64
		NameLen uint32
		Flags   uint32
	}{Parent: parent, NameLen: uint32(len(name)), Flags: flags}
	n.Len = uint32(int(unsafe.Sizeof(n)) + len(name) + 1)
	n.Error = notifyInvalEntry
	return c.Write(slices.Concat(unsafe.Slice((*byte)(unsafe.Pointer(&n)), unsafe.Sizeof(n)), []byte(name), []byte{0}))
}

// DeleteEntry makes the kernel take the name in the directory parent from the
// node child, as unlink(2) does: who has it open sees it as deleted, and with no
// link (fs/fuse/dir.c fuse_reverse_inval_entry: clear_nlink, d_delete). It waits
// for those who are in the directory just now.
func (c *Conn) DeleteEntry(parent, child uint64, name string) error {
	n := struct {
		outHeader
		Parent, Child uint64
		NameLen       uint32
		_             uint32
	}{Parent: parent, Child: child, NameLen: uint32(len(name))}
	n.Len = uint32(int(unsafe.Sizeof(n)) + len(name) + 1)
	n.Error = notifyDelete
	return c.Write(slices.Concat(unsafe.Slice((*byte)(unsafe.Pointer(&n)), unsafe.Sizeof(n)), []byte(name), []byte{0}))
}

// ErrNoResend is returned by Resend on a kernel older than 6.9.
var ErrNoResend = errors.New("the kernel can't ask again for what was read and not answered (FUSE_NOTIFY_RESEND, 6.9)")

// Resend puts every request that some device of the connection has read and
// not answered back into the queue, for any device to read (fs/fuse/dev.c
// fuse_resend). The one who serves must know such requests by the top bit of
// their Unique, and answer with it.
func (c *Conn) Resend() error {
	h := outHeader{Len: uint32(readHeader), Error: notifyResend}
	_, err := unix.Write(c.fd, unsafe.Slice((*byte)(unsafe.Pointer(&h)), readHeader))
	switch {
	case errors.Is(err, unix.EINVAL):
		return ErrNoResend // fuse_notify: a code that it doesn't know
	case err != nil:
		return fmt.Errorf("asking for the FUSE requests again: %w", err)
	}
	return nil
}
