package proxyfs

import (
	"bytes"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// GetXAttr reads an extended attribute into dest, or says how large it is.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	n, fd, err := f.use(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.done(n)
	size, err := getxattr(fd, attr, dest)
	return uint32(size), status(err)
}

func getxattr(fd int, attr string, dest []byte) (size int, err error) {
	err = eintr.Retry(func() error {
		size, err = unix.Getxattr(procPath(fd), attr, dest)
		return err
	})
	return size, err
}

// xattrListMax is XATTR_LIST_MAX of include/uapi/linux/limits.h.
const xattrListMax = 65536

// ListXAttr lists extended attributes in dest, or says how long the list is.
// trusted.* is shown to root only, as file systems do (trusted_xattr_handler's
// list: capable(CAP_SYS_ADMIN)); all callers look like root to the one below.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, fd, err := f.use(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.done(n)
	if h.Uid == 0 {
		size, err := listxattr(fd, dest)
		return uint32(size), status(err)
	}
	all := make([]byte, xattrListMax)
	size, err := listxattr(fd, all)
	if err != nil {
		return 0, status(err)
	}
	shown := withoutTrusted(all[:size])
	if len(dest) == 0 {
		return uint32(len(shown)), fuse.OK
	}
	if len(shown) > len(dest) {
		return uint32(len(shown)), fuse.ERANGE
	}
	return uint32(copy(dest, shown)), fuse.OK
}

func listxattr(fd int, dest []byte) (size int, err error) {
	err = eintr.Retry(func() error {
		size, err = unix.Listxattr(procPath(fd), dest)
		return err
	})
	return size, err
}

// withoutTrusted removes, in place, the names that begin with "trusted." from
// a list of names that each end in a zero byte.
func withoutTrusted(list []byte) []byte {
	shown := list[:0]
	for len(list) > 0 {
		end := bytes.IndexByte(list, 0) + 1
		if end == 0 {
			end = len(list)
		}
		if !bytes.HasPrefix(list, []byte("trusted.")) {
			shown = append(shown, list[:end]...)
		}
		list = list[end:]
	}
	return shown
}

// SetXAttr writes an extended attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	n, fd, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	err = eintr.Retry(func() error { return unix.Setxattr(procPath(fd), attr, data, int(in.Flags)) })
	if err == nil && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		err = dropSetGID(fd)
	}
	return status(err)
}

// dropSetGID takes the set-group-id bit away, as posix_acl_update_mode
// (fs/posix_acl.c) does when someone outside the group sets an ACL.
func dropSetGID(fd int) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_ISGID == 0 {
		return nil
	}
	return eintr.Retry(func() error { return unix.Chmod(procPath(fd), st.Mode&0o7777&^unix.S_ISGID) })
}

// RemoveXAttr removes an extended attribute.
func (f *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	n, fd, err := f.use(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	return status(eintr.Retry(func() error { return unix.Removexattr(procPath(fd), attr) }))
}
