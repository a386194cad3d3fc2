package proxyfs

import (
	"fmt"
	"os"
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// capabilities are the three sets of a thread, as capget(2) has them.
type capabilities [2]unix.CapUserData

func currentCapabilities() (capabilities, error) {
	var c capabilities
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&hdr, &c[0]); err != nil {
		return c, os.NewSyscallError("capget", err)
	}
	return c, nil
}

// without returns c with one capability missing from the effective set.
func (c capabilities) without(capability uint) capabilities {
	c[capability/32].Effective &^= 1 << (capability % 32)
	return c
}

// set makes c the calling thread's own.
func (c capabilities) set() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&hdr, &c[0])
}

// asCaller runs fn with the caller's fsuid and fsgid, so that what it creates
// belongs to the caller from its first moment, and so does the quota. The
// capabilities stay: the kernel has checked permissions before it asked
// (default_permissions), and the caller's supplementary groups, which would be
// needed to check them again, are not known here.
//
// Both ids are a thread's own (kernel/sys.c, __sys_setfsuid; libc plays no
// games with them), hence the locked thread. A thread that can't be set back
// is never unlocked, and dies with its goroutine.
func (f *FS) asCaller(h *fuse.InHeader, fn func() error) error {
	if h.Uid == 0 && h.Gid == 0 {
		return fn()
	}
	runtime.LockOSThread()
	setfsid(unix.SYS_SETFSGID, h.Gid)
	setfsid(unix.SYS_SETFSUID, h.Uid)
	err := f.caps.set() // leaving uid 0 dropped some (security/commoncap.c, cap_task_fix_setuid)
	const none = ^uint32(0)
	if err == nil && (setfsid(unix.SYS_SETFSGID, none) != h.Gid || setfsid(unix.SYS_SETFSUID, none) != h.Uid) {
		err = fmt.Errorf("act as uid %d gid %d: %w", h.Uid, h.Gid, unix.EOVERFLOW)
	}
	if err == nil {
		err = fn()
	}
	setfsid(unix.SYS_SETFSUID, 0)
	setfsid(unix.SYS_SETFSGID, 0)
	if f.caps.set() == nil && setfsid(unix.SYS_SETFSUID, none) == 0 && setfsid(unix.SYS_SETFSGID, none) == 0 {
		runtime.UnlockOSThread()
	}
	return err
}

// setfsid sets one of the thread's ids and returns what it was before;
// an id that can't be (such as -1) changes nothing.
func setfsid(call uintptr, id uint32) uint32 {
	old, _, _ := unix.RawSyscall(call, uintptr(id), 0, 0)
	return uint32(old)
}

// killingPrivileges runs fn, which changes a file's content, such that
// set-user-id and set-group-id fall if kill says that the caller would have
// made them fall: root's CAP_FSETID would keep them (fs/attr.c,
// setattr_should_drop_suidgid). File capabilities fall in any case.
func (f *FS) killingPrivileges(kill bool, fn func() error) error {
	if !kill {
		return fn()
	}
	runtime.LockOSThread()
	if err := f.caps.without(unix.CAP_FSETID).set(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := fn()
	if f.caps.set() == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// unprivileged runs fn without the capabilities that override permissions, on
// the thread that asCaller has locked, which sets them again.
func (f *FS) unprivileged(fn func() error) error {
	c := f.caps.without(unix.CAP_DAC_OVERRIDE).without(unix.CAP_DAC_READ_SEARCH)
	if err := c.set(); err != nil {
		return err
	}
	return fn()
}
