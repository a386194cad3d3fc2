package ptrace

import (
	"bytes"
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// saved is what the code finds behind itself: the state that it puts back, and
// what it needs for that. go_asm.h gives the assembler the offsets.
type saved struct {
	r15, rip                     uint64 // first: reached relative to RIP
	rax, rbx, rcx, rdx, rsi, rdi uint64
	rbp, r8, r9, r10, r11, r12   uint64
	r13, r14                     uint64
	// flags holds the arithmetic flags: bits 8-15 are the low byte of
	// RFLAGS, the low byte is 0x7f if OF is set (adding 1 then sets it).
	// No other flag is changed by the code or by a system call.
	flags  uint64
	during uint64        // the signal mask while it runs
	mask   uint64        // the thread's own
	mapped uint64        // size of the scratch mapping
	linger unix.Timespec // how long to wait for a tracer between the end and the restoring of the state
}

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

// What R12 holds at the start tells the code what its first system call was.
const (
	modeSingle = iota // one system call: only the state is to be put back
	modeMap           // mmap of the scratch mapping: to be unmapped again
	modeRun           // rt_sigprocmask: the table comes next
)

// The code carries marks: no-ops that are easily told from anything else.
var (
	markUnmapped = []byte{0x0f, 0x1f, 0x80, 's', 'p', 'f', '1'} // nopl 0x31667073(%rax)
	markEnd      = []byte{0x0f, 0x1f, 0x80, 's', 'p', 'f', '2'}
)

// auditArch is AUDIT_ARCH_X86_64, as seccomp filters are told it.
const auditArch = unix.AUDIT_ARCH_X86_64

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
	// The last two instructions address R15 and RIP relative to themselves:
	// 4c 8b 3d rel32 (mov), ff 25 rel32 (jmp).
	le := binary.LittleEndian
	le.PutUint32(code[end-4:], uint32(len(code)+int(unsafe.Offsetof(saved{}.rip))-end))
	le.PutUint32(code[end-6-4:], uint32(len(code)+int(unsafe.Offsetof(saved{}.r15))-(end-6)))
	return code, uint64(first)
}

// block is code and state for one use, as they are written into a process.
func block(resume *Regs, during, mask, mapped uint64, linger time.Duration) []byte {
	s := saved{
		r15: resume.R15, rip: resume.Rip,
		rax: resume.Rax, rbx: resume.Rbx, rcx: resume.Rcx, rdx: resume.Rdx, rsi: resume.Rsi, rdi: resume.Rdi,
		rbp: resume.Rbp, r8: resume.R8, r9: resume.R9, r10: resume.R10, r11: resume.R11, r12: resume.R12,
		r13: resume.R13, r14: resume.R14,
		flags:  arithmeticFlags(resume.Eflags),
		during: during,
		mask:   mask,
		mapped: mapped,
		linger: unix.NsecToTimespec(int64(linger)),
	}
	return append(append(make([]byte, 0, blockSize), blob...),
		unsafe.Slice((*byte)(unsafe.Pointer(&s)), unsafe.Sizeof(s))...)
}

// arithmeticFlags is RFLAGS in the form that the code restores it from.
func arithmeticFlags(rflags uint64) uint64 {
	f := rflags & 0xff << 8
	if rflags&(1<<11) != 0 { // OF
		f |= 0x7f
	}
	return f
}

// isResidue tells the code of a tracer that died from anything else.
func isResidue(content []byte) bool { return bytes.HasPrefix(content, blob) }
