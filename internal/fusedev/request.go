package fusedev

import (
	"bytes"
	"encoding/binary"
)

// headerSize is the size of struct fuse_in_header.
const headerSize = 40

// Request is one request as the kernel sent it: a fuse_in_header and what
// follows. Numbers are in the machine's byte order. Its methods read it
// without a copy, and answer zero for what a shorter request does not have.
type Request []byte

func (r Request) valid() bool { return len(r) >= headerSize }

// Opcode says what is asked.
func (r Request) Opcode() Opcode { return Opcode(r.u32(4)) }

// Unique numbers the request on its connection. It is even, but for an
// INTERRUPT, which has the number of what it interrupts plus one.
func (r Request) Unique() uint64 { return r.u64(8) }

// NodeID is the inode that is asked about: 1 is the root.
func (r Request) NodeID() uint64 { return r.u64(16) }

// TID is the thread that asks, in the pid namespace of whoever mounted: 0 if
// it is not visible there, or if the kernel asks for itself (RELEASE,
// write-back).
func (r Request) TID() int { return int(int32(r.u32(32))) }

// UID is the user that asks, as the connection's user namespace sees it.
func (r Request) UID() uint32 { return r.u32(24) }

// GID is that user's group.
func (r Request) GID() uint32 { return r.u32(28) }

// Arg is what follows the header: nothing, if that is all.
func (r Request) Arg() []byte {
	if !r.valid() {
		return nil
	}
	return r[headerSize:]
}

// U32 is the number of 32 bits that lies so many bytes behind the header.
func (r Request) U32(at int) uint32 { return r.u32(headerSize + at) }

// U64 is the number of 64 bits that lies so many bytes behind the header.
func (r Request) U64(at int) uint64 { return r.u64(headerSize + at) }

// Interrupted is what an INTERRUPT is about: the Unique of another request.
func (r Request) Interrupted() uint64 { return r.u64(headerSize) }

// Range is the part of the file that a READ or a WRITE is about, in bytes.
func (r Request) Range() (offset, size uint64) {
	// fuse_read_in and fuse_write_in both begin with fh, offset, size.
	return r.u64(headerSize + 8), uint64(r.u32(headerSize + 16))
}

// WriteBack tells the WRITE of a dirty page, which no process waits for, from
// that of write(2).
func (r Request) WriteBack() bool {
	const writeCache = 1 << 0 // FUSE_WRITE_CACHE
	return r.Opcode() == OpWrite && r.u32(headerSize+20)&writeCache != 0
}

// Unlock tells a lock request that only gives a lock back.
func (r Request) Unlock() bool {
	if op := r.Opcode(); op != OpSetlk && op != OpSetlkw {
		return false
	}
	const typeUnlock = 2                           // F_UNLCK
	return r.u32(headerSize+8+8+8+8) == typeUnlock // fuse_lk_in: fh, owner, lk{start, end, type, pid}
}

// Name is the name in the directory NodeID that the request is about, or
// empty. Of a RENAME it is the old one.
func (r Request) Name() string {
	before, ok := nameOffset[r.Opcode()]
	if !ok || len(r) < headerSize+before {
		return ""
	}
	name := r[headerSize+before:]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name)
}

func (r Request) u32(at int) uint32 {
	if len(r) < at+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(r[at:])
}

func (r Request) u64(at int) uint64 {
	if len(r) < at+8 {
		return 0
	}
	return binary.NativeEndian.Uint64(r[at:])
}
