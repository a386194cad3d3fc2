package ptrace

import (
	"bytes"
	"unsafe"
)

// The code that walks through a program's table in another process is assembly
// (code_linux_*.s). This is what is the same on every architecture.

// entry is one line of the table that the code walks through. Addresses are
// absolute.
type entry struct {
	op     uint32
	value  uint32    // of a branch: what is compared with; of a call: non-zero if an error is to be noted
	target uint64    // where to go if the branch is taken, or on error
	nr     uint64    // of the call; of a branch and a copy: the address to read
	args   [6]uint64 // of a copy, args[0] is the address to write
	result uint64
}

// header is at the start of the scratch mapping; the table follows.
type header struct {
	done   uint32 // 0 while the batch runs; a futex
	_      uint32
	failed uint64 // address of the entry whose error ended the program
}

// Operations of an entry.
const (
	opCall = iota
	opCopy64
	opCopyS32 // with sign extended
	opCopyU32
	opBranchEqual
	opBranchNotEqual
	opGoto
	opEnd
)

// What a register (R12, X22) holds at the start tells the code what its first system call was.
const (
	modeSingle = iota // one system call: only the state is to be put back
	modeMap           // mmap of the scratch mapping: to be unmapped again
	modeRun           // rt_sigprocmask: the table comes next
)

// batchCode is never called: its text is copied into other processes.
//
//lint:ignore U1000 the assembly uses it
func batchCode()

// batchCodeAddr returns where batchCode's text is.
func batchCodeAddr() unsafe.Pointer

// blob is the code as it is put into a process, complete but for the saved
// state that follows at stateOffset. From unmappedOffset on, the scratch
// mapping is gone.
var blob, unmappedOffset = loadCode()

// stateOffset is where saved begins, counted from the first byte of code.
var stateOffset = len(blob)

// blockSize is how many bytes code and state need.
var blockSize = uint64(len(blob)) + uint64(unsafe.Sizeof(saved{}))

// loadCode copies the code out of this program's own text, and finds where in
// it the scratch mapping is gone.
func loadCode() (code []byte, unmapped uint64) {
	const most = 1024
	text := unsafe.Slice((*byte)(batchCodeAddr()), most)
	end, first := bytes.Index(text, markEnd), bytes.Index(text, markUnmapped)
	if end < 0 || first < 0 || first > end {
		panic("ptrace: the batch code is not as it was assembled")
	}
	code = make([]byte, (end+15)&^15)
	copy(code, text[:end])
	linkCode(code, end)
	return code, uint64(first)
}

// blockOf is the code with the given state behind it.
func blockOf(s *saved) []byte {
	return append(append(make([]byte, 0, blockSize), blob...),
		unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))...)
}

// isResidue tells the code of a tracer that died from anything else.
func isResidue(content []byte) bool { return bytes.HasPrefix(content, blob) }
