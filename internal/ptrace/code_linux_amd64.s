#include "go_asm.h"
#include "textflag.h"

// func batchCodeAddr() unsafe.Pointer
TEXT ·batchCodeAddr(SB), NOSPLIT, $0-8
	LEAQ	·batchCode(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// MARK is nopl 0xnn667073(%rax): found by loadCode.
#define MARK(n) BYTE $0x0f; BYTE $0x1f; BYTE $0x80; BYTE $0x73; BYTE $0x70; BYTE $0x66; BYTE $n

// batchCode runs in another process, from the room behind the text of its
// vDSO. It is position independent, uses no stack (what RSP points to is the
// thread's: signal frames go there, below the red zone), and no FPU state.
//
//	R15	the saved state, right behind the code
//	R14	the entry of the table that is next
//	R13	the scratch mapping
//	R12	how it was entered (mode…)
//
// SYSCALL changes RAX, RCX and R11 only. No instruction here changes a flag
// other than the arithmetic ones.
//
// func batchCode()
TEXT ·batchCode(SB), NOSPLIT|NOFRAME, $0-0
	// The tracer set the registers for this call. It sees its result if it
	// is still there; if not, what follows puts everything back.
	SYSCALL
	CMPQ	R12, $const_modeRun
	JEQ	table
	CMPQ	R12, $const_modeMap
	JNE	mask
	MOVQ	AX, R13	// an error's munmap does nothing
	JMP	unmap

next:
	ADDQ	$entry__size, R14
table:
	MOVL	entry_op(R14), AX
	CMPL	AX, $const_opCall
	JNE	notcall
	MOVQ	entry_nr(R14), AX
	MOVQ	entry_args+0(R14), DI
	MOVQ	entry_args+8(R14), SI
	MOVQ	entry_args+16(R14), DX
	MOVQ	entry_args+24(R14), R10
	MOVQ	entry_args+32(R14), R8
	MOVQ	entry_args+40(R14), R9
	SYSCALL
	MOVQ	AX, entry_result(R14)
	CMPQ	AX, $-4095	// MAX_ERRNO: include/linux/err.h
	JCS	next
	CMPL	entry_value(R14), $0
	JEQ	goto
	MOVQ	R14, header_failed(R13)
goto:
	MOVQ	entry_target(R14), R14
	JMP	table

notcall:
	CMPL	AX, $const_opGoto
	JEQ	goto
	JHI	end
	MOVQ	entry_nr(R14), SI
	CMPL	AX, $const_opBranchEqual
	JCC	branch
	MOVQ	entry_args+0(R14), DI
	CMPL	AX, $const_opCopyS32
	JEQ	signed
	JHI	unsigned
	MOVQ	(SI), AX
	MOVQ	AX, (DI)
	JMP	next
signed:
	MOVLQSX	(SI), AX
	MOVQ	AX, (DI)
	JMP	next
unsigned:
	MOVL	(SI), AX
	MOVQ	AX, (DI)
	JMP	next
branch:
	MOVL	(SI), DX
	CMPL	AX, $const_opBranchEqual
	JNE	unequal
	CMPL	DX, entry_value(R14)
	JEQ	goto
	JMP	next
unequal:
	CMPL	DX, entry_value(R14)
	JNE	goto
	JMP	next

end:
	// Tell the tracer, whose mapping of the table outlives this one.
	MOVL	$1, AX
	MOVL	AX, header_done(R13)
	MOVQ	R13, DI
	MOVL	$1, SI	// FUTEX_WAKE
	MOVL	$1, DX
	MOVL	$202, AX	// futex
	SYSCALL
unmap:
	MOVQ	R13, DI
	MOVQ	saved_mapped(R15), SI
	MOVL	$11, AX	// munmap
	SYSCALL
	MARK(0x31)
	// The tracer that was woken stops the thread here, before it runs any
	// code of its own again. One that is gone is not waited for. ppoll, since
	// it is interrupted without leaving a restart block behind, which is the
	// thread's own call's (kernel/time/hrtimer.c, nanosleep_copyout).
	XORL	DI, DI
	XORL	SI, SI
	LEAQ	saved_linger(R15), DX
	XORL	R10, R10
	MOVL	$271, AX	// ppoll
	SYSCALL
mask:
	MOVL	$2, DI	// SIG_SETMASK
	LEAQ	saved_mask(R15), SI
	XORL	DX, DX
	MOVL	$8, R10	// sizeof(sigset_t)
	MOVL	$14, AX	// rt_sigprocmask
	SYSCALL

	MOVQ	saved_flags(R15), AX
	ADDB	$1, AL	// sets OF or clears it
	SAHF		// SF, ZF, AF, PF, CF
	MOVQ	saved_rax(R15), AX
	MOVQ	saved_rbx(R15), BX
	MOVQ	saved_rcx(R15), CX
	MOVQ	saved_rdx(R15), DX
	MOVQ	saved_rsi(R15), SI
	MOVQ	saved_rdi(R15), DI
	MOVQ	saved_rbp(R15), BP
	MOVQ	saved_r8(R15), R8
	MOVQ	saved_r9(R15), R9
	MOVQ	saved_r10(R15), R10
	MOVQ	saved_r11(R15), R11
	MOVQ	saved_r12(R15), R12
	MOVQ	saved_r13(R15), R13
	MOVQ	saved_r14(R15), R14
	// mov saved_r15(%rip), %r15 and jmp *saved_rip(%rip): the assembler has no
	// such operands, and loadCode fills in the distances.
	BYTE $0x4c; BYTE $0x8b; BYTE $0x3d; LONG $0
	BYTE $0xff; BYTE $0x25; LONG $0
	MARK(0x32)
