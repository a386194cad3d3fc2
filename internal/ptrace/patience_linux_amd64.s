#include "textflag.h"

// Offsets of registers in the struct ucontext_t of a signal frame
// (arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64).
#define uc_rdi 104
#define uc_rax 144
#define uc_rip 168

// breakSeize is a signal handler. If the thread is about to make, or to
// restart, ptrace(PTRACE_SEIZE), the call ends with EINTR instead. It uses no
// stack and calls nothing.
//
// func breakSeize()
TEXT ·breakSeize(SB), NOSPLIT|NOFRAME, $0-0
	CMPQ	uc_rax(DX), $101	// ptrace
	JNE	out
	CMPQ	uc_rdi(DX), $0x4206	// PTRACE_SEIZE
	JNE	out
	MOVQ	uc_rip(DX), AX
	CMPW	(AX), $0x050f	// syscall
	JNE	out
	ADDQ	$2, AX
	MOVQ	AX, uc_rip(DX)
	MOVQ	$-4, uc_rax(DX)	// EINTR
out:
	RET

// func sigreturn()
TEXT ·sigreturn(SB), NOSPLIT|NOFRAME, $0-0
	MOVL	$15, AX	// rt_sigreturn
	SYSCALL
	INT	$3

// func handlerAddrs() (handler, restorer uintptr)
TEXT ·handlerAddrs(SB), NOSPLIT, $0-16
	LEAQ	·breakSeize(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	·sigreturn(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
