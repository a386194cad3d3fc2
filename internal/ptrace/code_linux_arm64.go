package ptrace

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// saved is what the code finds behind itself: the state that it puts back, and
// what it needs for that. go_asm.h gives the assembler the offsets.
//
// No instruction loads the program counter from memory, and a jump takes a
// register. So the state is put back by rt_sigreturn, from a signal frame that
// was never made by a signal. It takes along the signal mask, and the FPSIMD
// registers: a frame without those is refused (arch/arm64/kernel/signal.c,
// restore_sigframe).
type saved struct {
	during uint64        // the signal mask while it runs
	mapped uint64        // size of the scratch mapping
	linger unix.Timespec // how long to wait for a tracer between the end and the restoring of the state
	_      [14]uint64    // the frame's struct siginfo and the like, which the kernel does not read
	frame  frame
}

// frame is struct rt_sigframe (arch/arm64/kernel/signal.c) from its
// uc_stack on, frameSkipped bytes after the beginning, as far as it is used.
type frame struct {
	// uc_stack: with these flags, which there are not, the thread's alternate
	// stack stays what it is (kernel/signal.c, do_sigaltstack,
	// restore_altstack).
	stackAddr  uint64
	stackFlags uint64
	stackSize  uint64
	mask       uint64
	_          [16]uint64 // the rest of 1024 bits, and up to an address divisible by 16
	faultAddr  uint64
	regs       unix.PtraceRegs
	_          uint64
	// struct fpsimd_context, and the record that ends the list.
	magic, size uint32
	fpsr, fpcr  uint32
	vregs       [64]uint64
	end         [2]uint64
}

const (
	frameSkipped = 144
	stackInvalid = 4          // neither 0, SS_ONSTACK nor SS_DISABLE
	fpsimdMagic  = 0x46508001 // arch/arm64/include/uapi/asm/sigcontext.h
	fpsimdSize   = 528
)

// The code carries marks, no-ops that are easily told from anything else: movz
// of a number to the register that is always zero.
var (
	markUnmapped = []byte{0x3f, 0x26, 0x8e, 0xd2} // movz xzr, #0x7131
	markEnd      = []byte{0x5f, 0x26, 0x8e, 0xd2} // movz xzr, #0x7132
)

// auditArch is AUDIT_ARCH_AARCH64, as seccomp filters are told it.
const auditArch = unix.AUDIT_ARCH_AARCH64

// linkCode has nothing to complete: no instruction knows where the state is.
func linkCode([]byte, int) {}

// extra is what else of a thread than its registers has to be saved, for
// rt_sigreturn puts it back: struct user_fpsimd_state.
type extra struct {
	vregs      [64]uint64
	fpsr, fpcr uint32
	_          [2]uint32
}

func (th *Thread) readExtra() (e extra, err error) {
	if _, err := regset(unix.PTRACE_GETREGSET, th.TID, ntPRFPREG, unsafe.Pointer(&e), unsafe.Sizeof(e)); err != nil {
		return e, th.failed("read FPSIMD registers of", err)
	}
	return e, nil
}

// block is code and state for one use, as they are written into a process.
func block(resume *Regs, more *extra, during, mask, mapped uint64, linger time.Duration) []byte {
	return blockOf(&saved{
		during: during,
		mapped: mapped,
		linger: unix.NsecToTimespec(int64(linger)),
		frame: frame{
			stackFlags: stackInvalid,
			mask:       mask,
			regs:       resume.PtraceRegs,
			magic:      fpsimdMagic, size: fpsimdSize,
			fpsr: more.fpsr, fpcr: more.fpcr, vregs: more.vregs,
		},
	})
}
