package proxyfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// modeIn returns the mode of what is created in dir, by the rule of
// posix_acl_create (fs/posix_acl.c): the umask holds unless the directory has
// a default ACL. Without FUSE_DONT_MASK the umask is in mode already, and
// taking it away once more changes nothing.
func modeIn(dir int, mode, umask uint32) uint32 {
	if mode&umask&0o777 == 0 {
		return mode
	}
	if size, err := getxattr(dir, "system.posix_acl_default", nil); err == nil && size > 0 {
		return mode
	}
	return mode &^ (umask & 0o777)
}

// create makes base in the directory of h's node with make, as the caller,
// and looks it up.
func (f *FS) create(h *fuse.InHeader, base string, out *fuse.EntryOut, make func(dir int) error) fuse.Status {
	dir, fd, err := f.use(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	if err := f.asCaller(h, func() error { return eintr.Retry(func() error { return make(fd) }) }); err != nil {
		return status(err)
	}
	return status(f.lookup(dir, fd, base, out))
}

// Mknod makes a file that is not opened: a FIFO, socket, device or other.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, base string, out *fuse.EntryOut) fuse.Status {
	return f.create(&in.InHeader, base, out, func(dir int) error {
		return unix.Mknodat(dir, base, modeIn(dir, in.Mode, in.Umask), int(in.Rdev)) // in the encoding that mknod(2) takes
	})
}

// Mkdir makes a directory.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, base string, out *fuse.EntryOut) fuse.Status {
	return f.create(&in.InHeader, base, out, func(dir int) error {
		return unix.Mkdirat(dir, base, modeIn(dir, in.Mode, in.Umask))
	})
}

// Symlink makes a symbolic link.
func (f *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, base string, out *fuse.EntryOut) fuse.Status {
	return f.create(h, base, out, func(dir int) error {
		return unix.Symlinkat(target, dir, base)
	})
}

// Readlink reads a symbolic link.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, fd, err := f.use(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer f.done(n)
	buf := make([]byte, unix.PathMax)
	var size int
	err = eintr.Retry(func() error {
		size, err = unix.Readlinkat(fd, "", buf)
		return err
	})
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// Link gives a file another name.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, base string, out *fuse.EntryOut) fuse.Status {
	n, fd, err := f.use(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	dir, dirFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	err = eintr.Retry(func() error { return unix.Linkat(fd, "", dirFD, base, unix.AT_EMPTY_PATH) })
	if err != nil {
		return status(err)
	}
	return status(f.lookup(dir, dirFD, base, out))
}

// Unlink deletes a name of a file.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, base string) fuse.Status {
	return f.remove(h, base, 0)
}

// Rmdir deletes a directory.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, base string) fuse.Status {
	return f.remove(h, base, unix.AT_REMOVEDIR)
}

func (f *FS) remove(h *fuse.InHeader, base string, flags int) fuse.Status {
	dir, fd, err := f.use(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	f.rediscover(dir, base)
	if err := eintr.Retry(func() error { return unix.Unlinkat(fd, base, flags) }); err != nil {
		return status(err)
	}
	f.mu.Lock()
	f.dropNameLocked(dir, base, true)
	f.mu.Unlock()
	return fuse.OK
}

// Rename moves a name, with the flags of renameat2(2).
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldBase, newBase string) fuse.Status {
	from, fromFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(from)
	to, toFD, err := f.use(in.Newdir)
	if err != nil {
		return status(err)
	}
	defer f.done(to)
	f.rediscover(from, oldBase)
	f.rediscover(to, newBase)
	rename := func() error {
		return eintr.Retry(func() error { return unix.Renameat2(fromFD, oldBase, toFD, newBase, uint(in.Flags)) })
	}
	if in.Flags&unix.RENAME_WHITEOUT != 0 {
		err = f.asCaller(&in.InHeader, rename) // it makes a device, which is the caller's
	} else {
		err = rename()
	}
	if err != nil {
		return status(err)
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	moved, other := from.children[oldBase], to.children[newBase]
	if moved == other {
		return fuse.OK // the same file, or neither known: rename(2) did nothing to it
	}
	exchange := in.Flags&unix.RENAME_EXCHANGE != 0
	if moved != nil && moved.gone { // what was moved is another file than the node knew
		moved = nil
	}
	if other != nil && other.gone {
		other = nil
	}
	for _, n := range []*node{moved, other} {
		if n != nil {
			n.users++ // it has no name for a moment
		}
	}
	f.dropNameLocked(from, oldBase, false)
	f.dropNameLocked(to, newBase, !exchange)
	if moved != nil {
		f.setNameLocked(to, newBase, moved)
		f.unpinLocked(moved)
	}
	if other != nil {
		if exchange {
			f.setNameLocked(from, oldBase, other)
		}
		f.unpinLocked(other)
	}
	return fuse.OK
}
