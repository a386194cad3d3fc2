package handover

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
	"spfs/internal/fuseinit"
)

// open gives a handle: the recorded one that the thread came for, or one that
// fits, or one that is made up.
func (s *standIn) open(req fusedev.Request) func() {
	node, flags, tid := req.NodeID(), req.U32(0), req.TID()
	k := s.nodes[node]
	if k == nil {
		return s.errno(req, unix.ESTALE)
	}
	if isDir := k.Attr.Mode&unix.S_IFMT == unix.S_IFDIR; isDir != (req.Opcode() == fusedev.OpOpendir) {
		return s.errno(req, unix.EIO)
	}
	s.told[node] = true
	i := -1
	if s.restore {
		var expected bool
		if i, expected = s.expect[tid]; expected {
			delete(s.expect, tid)
			if i == forListing {
				return s.data(req, raw(&fuse.OpenOut{Fh: s.handles.makeUp(node)}))
			}
			if err := s.handles.fits(i, node, flags); err != nil {
				s.failLocked(fmt.Errorf("thread %d opened node %d (%s): %w", tid, node, s.nameOf(node), err))
				return s.errno(req, unix.EIO)
			}
		} else {
			i = s.handles.take(node, flags)
		}
	}
	if i >= 0 {
		h := &s.rec.Handles[i]
		return s.data(req, raw(&fuse.OpenOut{Fh: s.handles.give(i), OpenFlags: h.OpenFlags}))
	}
	// As others of the file are open: whether it is read directly decides
	// what may be done with it. What is cached of it stays.
	out := fuse.OpenOut{Fh: s.handles.makeUp(node), OpenFlags: fuse.FOPEN_KEEP_CACHE}
	for _, j := range s.handles.byNode[node] {
		if h := &s.rec.Handles[j]; h.Known {
			out.OpenFlags |= h.OpenFlags
		}
	}
	return s.data(req, raw(&out))
}

// release takes a handle back. In a dump it may be one of the daemon's own.
func (s *standIn) release(req fusedev.Request) func() {
	node, fh, flags := req.NodeID(), req.U64(0), req.U32(8)
	switch {
	case s.handles.release(node, fh, flags):
		return s.errno(req, 0)
	case !s.restore:
		s.kept++ // as in keep: a process has died, which does no harm
		return nil
	}
	s.failLocked(fmt.Errorf("handle %#x of node %d (%s) was released, and had not been given", fh, node, s.nameOf(node)))
	return s.errno(req, unix.EIO)
}

func (s *standIn) getattr(req fusedev.Request, k *known) func() {
	return s.data(req, s.attrOut(&fuse.AttrOut{AttrValid: s.valid(), Attr: k.attr()}))
}

// statxReply must not be ENOSYS: the kernel would never ask the daemon for
// one (fs/fuse/dir.c fuse_update_get_attr, fc->no_statx).
func (s *standIn) statxReply(req fusedev.Request, k *known) func() {
	return s.data(req, raw(&fuse.StatxOut{AttrValid: s.valid(), Statx: k.statx()}))
}

func (s *standIn) statfsReply(req fusedev.Request) func() {
	r := s.rec.Statfs
	return s.data(req, s.statfs(&fuse.StatfsOut{
		Blocks: r.Blocks, Bfree: r.Bfree, Bavail: r.Bavail, Files: r.Files, Ffree: r.Ffree,
		Bsize: r.Bsize, NameLen: r.NameLen, Frsize: r.Frsize,
	}))
}

// read answers with what was recorded. All that is asked for and that the
// file has must come, or the kernel takes it for shorter (fs/fuse/file.c
// fuse_short_read). In a restore the rest is zeros: nobody looks at it before
// HandOver drops it from the page cache. In a dump nothing is made up: who
// reads what was not saved gets an error. Often it is but the kernel reading
// ahead, and then it asks again for what is really wanted.
func (s *standIn) read(req fusedev.Request, k *known) func() {
	offset, size := req.Range()
	if offset >= k.Attr.Size {
		return s.data(req, nil)
	}
	size = min(size, k.Attr.Size-offset, fuseinit.MaxMessage)
	if !s.restore && !k.covered(offset, size) {
		return s.errno(req, unix.EIO)
	}
	k.read = true
	b := make([]byte, size)
	k.content(b, offset)
	return s.data(req, b)
}

// lseek finds data everywhere up to the end.
func (s *standIn) lseek(req fusedev.Request, k *known) func() {
	offset, whence := req.U64(8), req.U32(16)
	switch {
	case offset >= k.Attr.Size:
		return s.errno(req, unix.ENXIO)
	case whence == unix.SEEK_DATA:
	case whence == unix.SEEK_HOLE:
		offset = k.Attr.Size
	default:
		return s.errno(req, unix.EINVAL)
	}
	return s.data(req, raw(&fuse.LseekOut{Offset: offset}))
}

// poll says that nothing has to be waited for.
func (s *standIn) poll(req fusedev.Request) func() {
	// DEFAULT_POLLMASK: POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM.
	out := struct{ Revents, Padding uint32 }{Revents: 0x145}
	return s.data(req, raw(&out))
}

// getxattr answers GETXATTR and LISTXATTR: the value, or its length if no
// room was offered.
func (s *standIn) getxattr(req fusedev.Request, k *known) func() {
	const nameAt = 8 // fuse_getxattr_in: size, padding
	value := k.xattrNames()
	if req.Opcode() == fusedev.OpGetxattr {
		var ok bool
		if value, ok = k.xattr(cString(req.Arg(), nameAt)); !ok {
			return s.errno(req, unix.ENODATA)
		}
	}
	switch room := req.U32(0); {
	case room == 0:
		return s.data(req, raw(&fuse.GetXAttrOut{Size: uint32(len(value))}))
	case int(room) < len(value):
		return s.errno(req, unix.ERANGE)
	}
	return s.data(req, []byte(value))
}

// cString is the text in b that begins at at and ends before a zero byte.
func cString(b []byte, at int) string {
	if at > len(b) {
		return ""
	}
	b = b[at:]
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// readdir lists what was recorded, from where the position says, with the
// positions that the daemon gave. READDIRPLUS gives no node for a name: that
// would count as a lookup (fs/fuse/readdir.c fuse_direntplus_link).
func (s *standIn) readdir(req fusedev.Request, k *known) func() {
	if s.settling && req.Opcode() == fusedev.OpReaddirplus {
		return s.listLookups(req, k)
	}
	offset, size := req.Range()
	entries := k.Entries
	if offset != 0 {
		at := 0
		for at < len(entries) && entries[at].Off != offset {
			at++
		}
		if at == len(entries) {
			return s.errno(req, unix.EIO)
		}
		entries = entries[at+1:]
	} else if len(entries) == 0 {
		return s.errno(req, unix.EIO) // it was not recorded
	}
	k.read = true
	list := fuse.NewDirEntryList(make([]byte, min(size, fusedev.MaxWrite)), offset)
	for _, e := range entries {
		d := fuse.DirEntry{Name: string(e.Name), Ino: e.Ino, Mode: e.Type << 12, Off: e.Off}
		if req.Opcode() == fusedev.OpReaddirplus {
			if list.AddDirLookupEntry(d) == nil {
				break
			}
		} else if !list.AddDirEntry(d) {
			break
		}
	}
	return s.data(req, list.Bytes())
}
