package ptrace

import (
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

// The code carries marks: no-ops that are easily told from anything else.
var (
	markUnmapped = []byte{0x0f, 0x1f, 0x80, 's', 'p', 'f', '1'} // nopl 0x31667073(%rax)
	markEnd      = []byte{0x0f, 0x1f, 0x80, 's', 'p', 'f', '2'}
)

// auditArch is AUDIT_ARCH_X86_64, as seccomp filters are told it.
const auditArch = unix.AUDIT_ARCH_X86_64

// linkCode completes the last two instructions of code that ends there: they
// address R15 and RIP relative to themselves (4c 8b 3d rel32, mov; ff 25 rel32,
// jmp).
func linkCode(code []byte, end int) {
	le := binary.LittleEndian
	le.PutUint32(code[end-4:], uint32(len(code)+int(unsafe.Offsetof(saved{}.rip))-end))
	le.PutUint32(code[end-6-4:], uint32(len(code)+int(unsafe.Offsetof(saved{}.r15))-(end-6)))
}

// extra is what else of a thread than its registers has to be saved: nothing, for
// neither the code nor a system call touches it.
type extra struct{}

func (th *Thread) readExtra() (extra, error) { return extra{}, nil }

// block is code and state for one use, as they are written into a process.
func block(resume *Regs, _ *extra, during, mask, mapped uint64, linger time.Duration) []byte {
	return blockOf(&saved{
		r15: resume.R15, rip: resume.Rip,
		rax: resume.Rax, rbx: resume.Rbx, rcx: resume.Rcx, rdx: resume.Rdx, rsi: resume.Rsi, rdi: resume.Rdi,
		rbp: resume.Rbp, r8: resume.R8, r9: resume.R9, r10: resume.R10, r11: resume.R11, r12: resume.R12,
		r13: resume.R13, r14: resume.R14,
		flags:  arithmeticFlags(resume.Eflags),
		during: during,
		mask:   mask,
		mapped: mapped,
		linger: unix.NsecToTimespec(int64(linger)),
	})
}

// arithmeticFlags is RFLAGS in the form that the code restores it from.
func arithmeticFlags(rflags uint64) uint64 {
	f := rflags & 0xff << 8
	if rflags&(1<<11) != 0 { // OF
		f |= 0x7f
	}
	return f
}
