package handover

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/bytetext"
)

type text = bytetext.Text

// known is what a stand-in knows of a node, and what it has said of it.
type known struct {
	*Node
	byEntry map[string]*known // of a directory: what it has by those names

	given uint64 // lookups that were answered with it, less those forgotten
	read  bool   // something of it may be in the page cache
}

// owed is how often the daemon gave the node: at least once for each name, if
// nobody knows.
func (k *known) owed() uint64 {
	if k.Lookups == 0 {
		return uint64(max(1, len(k.Names)))
	}
	return k.Lookups
}

// tableOf is the record by node id. For a restore it has names for those
// without one, too.
func tableOf(rec *Record, restore bool) map[uint64]*known {
	t := make(map[uint64]*known, len(rec.Nodes))
	for i := range rec.Nodes {
		t[rec.Nodes[i].ID] = &known{Node: &rec.Nodes[i]}
	}
	enter := func(name Name, k *known) {
		parent := t[name.Parent]
		if parent.byEntry == nil {
			parent.byEntry = make(map[string]*known)
		}
		parent.byEntry[string(name.Name)] = k
	}
	for _, k := range t {
		for _, name := range k.Names {
			enter(name, k)
		}
	}
	if restore {
		for id, name := range goneNames(rec) {
			enter(name, t[id])
		}
	}
	return t
}

// attr is the node's attributes as the kernel wants them.
func (k *known) attr() fuse.Attr {
	a := &k.Attr
	return fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: uint64(a.Atime[0]), Atimensec: uint32(a.Atime[1]),
		Mtime: uint64(a.Mtime[0]), Mtimensec: uint32(a.Mtime[1]),
		Ctime: uint64(a.Ctime[0]), Ctimensec: uint32(a.Ctime[1]),
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: a.Rdev, Blksize: a.Blksize, Flags: a.Flags,
	}
}

// statx is the same for FUSE_STATX, without a time of birth: nobody recorded
// that.
func (k *known) statx() fuse.Statx {
	a := &k.Attr
	at := func(t Time) fuse.SxTime { return fuse.SxTime{Sec: uint64(t[0]), Nsec: uint32(t[1])} }
	return fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID,
		Mode: uint16(a.Mode), Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: at(a.Atime), Ctime: at(a.Ctime), Mtime: at(a.Mtime),
		// The reverse of new_encode_dev (include/linux/kdev_t.h).
		RdevMajor: a.Rdev >> 8 & 0xfff, RdevMinor: a.Rdev&0xff | a.Rdev>>12&0xfff00,
	}
}

// content fills b with what was recorded of the file at offset, and with
// zeros where nothing was.
func (k *known) content(b []byte, offset uint64) {
	clear(b)
	for _, s := range k.Content {
		switch {
		case s.Offset >= offset+uint64(len(b)):
			return // they are in order
		case s.Offset >= offset:
			copy(b[s.Offset-offset:], s.Bytes)
		case s.Offset+uint64(len(s.Bytes)) > offset:
			copy(b, s.Bytes[offset-s.Offset:])
		}
	}
}

// covered tells whether all of a range was recorded, or lies behind the end.
func (k *known) covered(offset, size uint64) bool {
	end := min(offset+size, k.Attr.Size)
	for _, s := range k.Content {
		if s.Offset <= offset && offset < s.Offset+uint64(len(s.Bytes)) {
			offset = s.Offset + uint64(len(s.Bytes))
		}
	}
	return offset >= end
}

// xattr is the value of an extended attribute.
func (k *known) xattr(name string) (string, bool) {
	for _, x := range k.Xattrs {
		if string(x.Name) == name {
			return string(x.Value), true
		}
	}
	return "", false
}

// xattrNames is the answer to listxattr(2).
func (k *known) xattrNames() string {
	var b strings.Builder
	for _, x := range k.Xattrs {
		b.WriteString(string(x.Name))
		b.WriteByte(0)
	}
	return b.String()
}
