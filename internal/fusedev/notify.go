package fusedev

import "unsafe"

// notifyInvalInode is enum fuse_notify_code's FUSE_NOTIFY_INVAL_INODE.
const notifyInvalInode = 2

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
