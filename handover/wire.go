package handover

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// answer sends success and what belongs to it.
func (s *standIn) answer(req fusedev.Request, data []byte) {
	if err := s.conn.Reply(req, data); err != nil {
		s.fail(err)
	}
}

// refuse answers with an errno, or with success and nothing else if it is 0.
func (s *standIn) refuse(req fusedev.Request, errno unix.Errno) {
	if err := s.conn.Answer(req.Unique(), errno); err != nil {
		s.fail(err)
	}
}

// raw is a struct of the protocol as it goes to the kernel: T is one of
// go-fuse's, in the kernel's layout and without pointers.
func raw[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// Structs that were shorter once (fs/fuse/dev.c fuse_adjust_compat: the
// answer must have the length that belongs to the negotiated version).
const (
	minorLongAttr   = 9 // FUSE_COMPAT_ENTRY_OUT_SIZE, FUSE_COMPAT_ATTR_OUT_SIZE
	minorLongStatfs = 4 // FUSE_COMPAT_STATFS_SIZE

	attrGrowth  = 8  // blksize and flags
	statfsShort = 48 // up to namelen, frsize and padding
)

func (s *standIn) entry(o *fuse.EntryOut) []byte { return s.trimAttr(raw(o)) }

func (s *standIn) attrOut(o *fuse.AttrOut) []byte { return s.trimAttr(raw(o)) }

func (s *standIn) trimAttr(b []byte) []byte {
	if i := s.rec.Init; i.Known && i.Minor < minorLongAttr {
		return b[:len(b)-attrGrowth]
	}
	return b
}

func (s *standIn) statfs(o *fuse.StatfsOut) []byte {
	b := raw(o)
	if i := s.rec.Init; i.Known && i.Minor < minorLongStatfs {
		return b[:statfsShort]
	}
	return b
}
