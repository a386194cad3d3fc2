#include "textflag.h"

// Offsets of registers in the struct ucontext of a signal frame
// (arch/arm64/include/uapi/asm/ucontext.h, sigcontext.h).
#define uc_x0 184
#define uc_x8 248
#define uc_pc 440

// breakSeize is a signal handler. If the thread is about to make, or to
// restart, ptrace(PTRACE_SEIZE), the call ends with EINTR instead. It uses no
// stack and calls nothing.
//
// func breakSeize()
TEXT ·breakSeize(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	uc_x8(R2), R9
	CMP	$117, R9	// ptrace
	BNE	out
	MOVD	uc_x0(R2), R9
	MOVD	$0x4206, R10	// PTRACE_SEIZE
	CMP	R10, R9
	BNE	out
	MOVD	uc_pc(R2), R9
	MOVWU	(R9), R10
	MOVD	$0xd4000001, R11	// svc #0
	CMPW	R11, R10
	BNE	out
	ADD	$4, R9
	MOVD	R9, uc_pc(R2)
	MOVD	$-4, R9	// EINTR
	MOVD	R9, uc_x0(R2)
out:
	RET

// func sigreturn()
TEXT ·sigreturn(SB), NOSPLIT|NOFRAME, $0-0
	MOVD	$139, R8	// rt_sigreturn
	SVC
	BRK

// func handlerAddrs() (handler, restorer uintptr)
TEXT ·handlerAddrs(SB), NOSPLIT, $0-16
	MOVD	$·breakSeize(SB), R0
	MOVD	R0, handler+0(FP)
	MOVD	$·sigreturn(SB), R0
	MOVD	R0, restorer+8(FP)
	RET
