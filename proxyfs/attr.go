package proxyfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// GetAttr describes a file.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, fd, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	return status(f.getattr(fd, out))
}

func (f *FS) getattr(fd int, out *fuse.AttrOut) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	out.SetTimeout(f.opts.AttrTimeout)
	fillAttr(&out.Attr, &st)
	return nil
}

// Statx describes a file by what statx(2) has more.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, fd, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	flags := unix.AT_EMPTY_PATH | int(in.SxFlags)&(unix.AT_STATX_FORCE_SYNC|unix.AT_STATX_DONT_SYNC)
	var stx unix.Statx_t
	err = eintr.Retry(func() error { return unix.Statx(fd, "", flags, int(in.SxMask), &stx) })
	if err != nil {
		return status(err)
	}
	out.SetTimeout(f.opts.AttrTimeout)
	out.FromStatx(&stx)
	return fuse.OK
}

// SetAttr changes a file's mode, owner, size and times.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, fd, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	if err := f.setattr(fd, in); err != nil {
		return status(err)
	}
	return status(f.getattr(fd, out))
}

// setattr goes from what changes more than it says to what does not: a new
// owner drops set-id bits, which a mode may set again, and both it and a new
// size change the times.
func (f *FS) setattr(fd int, in *fuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if hasUID || hasGID {
		// -1, which GetUID and GetGID give for what is not to change, is
		// what fchownat takes for it.
		err := eintr.Retry(func() error {
			return unix.Fchownat(fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH)
		})
		if err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := eintr.Retry(func() error { return unix.Chmod(procPath(fd), mode) }); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(fd, in, int64(size)); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		times := []unix.Timespec{
			timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		}
		return eintr.Retry(func() error { return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH) })
	}
	return nil
}

// timeOf is one of utimensat's times, out of a request that sets it if its
// flag is among valid, to now if the other one is too.
func timeOf(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// truncate sets the size, by the open file where there is one: file systems
// that check permissions (NFS) then don't check them again.
func (f *FS) truncate(fd int, in *fuse.SetAttrIn, size int64) error {
	kill := in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	if fh, ok := in.GetFh(); ok {
		if h := f.handle(fh); h != nil && h.flags&unix.O_ACCMODE != unix.O_RDONLY {
			hfd, err := f.handleFD(h)
			if err != nil {
				return err
			}
			return f.killingPrivileges(kill, func() error {
				return eintr.Retry(func() error { return unix.Ftruncate(hfd, size) })
			})
		}
	}
	return f.killingPrivileges(kill, func() error {
		return eintr.Retry(func() error { return unix.Truncate(procPath(fd), size) })
	})
}

// Access checks the caller's permissions. The kernel only asks when it is
// mounted without default_permissions; the caller's supplementary groups are
// not known, so they grant nothing.
func (f *FS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	n, fd, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	if in.Uid == 0 {
		return status(eintr.Retry(func() error { return unix.Access(procPath(fd), in.Mask) }))
	}
	return status(f.asCaller(&in.InHeader, func() error {
		return f.unprivileged(func() error { return unix.Access(procPath(fd), in.Mask) })
	}))
}

// StatFs describes the file system that a file is on.
func (f *FS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, fd, err := f.use(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	var st unix.Statfs_t
	if err := eintr.Retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks:  st.Blocks,
		Bfree:   st.Bfree,
		Bavail:  st.Bavail,
		Files:   st.Files,
		Ffree:   st.Ffree,
		Bsize:   uint32(st.Bsize),
		NameLen: uint32(st.Namelen),
		Frsize:  uint32(st.Frsize),
	}
	return fuse.OK
}
