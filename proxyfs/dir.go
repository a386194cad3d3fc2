package proxyfs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// OpenDir opens a directory.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, nodeFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	fd, err := f.withDescriptor(func() (int, error) { return reopen(nodeFD, flags) })
	if err != nil {
		return status(err)
	}
	h := f.add(n, fd, flags)
	f.mu.Lock()
	if len(f.positions) > 0 {
		if path, ok := f.pathLocked(n); ok {
			h.list = newListing(f.positions[path])
		}
	}
	f.mu.Unlock()
	out.Fh = h.id
	return fuse.OK
}

// ReadDir lists a directory from a position on.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readdir(in, func(e *dirent) bool { return out.AddDirEntry(wireEntry(e)) })
}

// ReadDirPlus lists a directory from a position on, and looks every entry up.
// What can't be looked up is listed all the same (node id 0).
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, dirFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	return f.readdir(in, func(e *dirent) bool {
		entry := out.AddDirLookupEntry(wireEntry(e))
		if entry == nil {
			return false
		}
		if e.name != "." && e.name != ".." && f.lookup(dir, dirFD, e.name, entry) != nil {
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

func wireEntry(e *dirent) fuse.DirEntry {
	return fuse.DirEntry{Name: e.name, Ino: e.ino, Off: e.cookie, Mode: uint32(e.typ) << 12}
}

// readdir calls add with one entry after the other until it returns false.
func (f *FS) readdir(in *fuse.ReadIn, add func(*dirent) bool) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	fd, err := f.handleFDLocked(h)
	if err != nil {
		return status(err)
	}
	if h.list == nil {
		h.list = &listing{}
	}
	l := h.list
	if l.entries == nil || l.reread || in.Offset == 0 {
		entries, err := readEntries(fd)
		if err != nil {
			return status(err)
		}
		l.replace(entries, in.Offset != 0)
		l.reread = false
		l.cookie, l.next = 0, 0
	}
	l.seek(in.Offset)
	for l.next < len(l.entries) && add(&l.entries[l.next]) {
		l.cookie = l.entries[l.next].cookie
		l.next++
	}
	return fuse.OK
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// readEntries reads a directory from its beginning to its end.
func readEntries(fd int) ([]dirent, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	buf := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(buf)
	list := make([]dirent, 0, 16)
	for {
		var n int
		err := eintr.Retry(func() (err error) {
			n, err = unix.Getdents(fd, *buf)
			return err
		})
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return list, nil
		}
		if list, err = parseDirents(list, (*buf)[:n]); err != nil {
			return nil, err
		}
	}
}

// ReleaseDir closes a directory.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.release(in.Fh) }

// FsyncDir makes a directory's entries durable.
func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}
