#include "go_asm.h"
#include "textflag.h"

// func batchCodeAddr() unsafe.Pointer
TEXT ·batchCodeAddr(SB), NOSPLIT, $0-8
	MOVD	$·batchCode(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// batchCode runs in another process, from the room behind the text of its
// vDSO. It is position independent, and uses no stack (what SP points to is the
// thread's: signal frames go there) and no FPSIMD register.
//
//	R19	the saved state, right behind the code
//	R20	the entry of the table that is next
//	R21	the scratch mapping
//	R22	how it was entered (mode…)
//
// SVC changes R0 only. (Of SVE it leaves nothing but what FPSIMD shares:
// Documentation/arch/arm64/sve.rst, "System call behaviour".)
//
// func batchCode()
TEXT ·batchCode(SB), NOSPLIT|NOFRAME, $0-0
	// A vDSO may be guarded (BTI): a branch that was about to land when the
	// thread was stopped lands here.
	WORD	$0xd50324df	// bti jc
	// The tracer set the registers for this call. It sees its result if it
	// is still there; if not, what follows puts everything back.
	SVC
	CMP	$const_modeRun, R22
	BEQ	table
	CMP	$const_modeMap, R22
	BNE	back
	MOVD	R0, R21	// an error's munmap does nothing
	B	unmap

next:
	ADD	$entry__size, R20
table:
	MOVWU	entry_op(R20), R9
	CMPW	$const_opCall, R9
	BNE	notcall
	MOVD	entry_nr(R20), R8
	MOVD	entry_args+0(R20), R0
	MOVD	entry_args+8(R20), R1
	MOVD	entry_args+16(R20), R2
	MOVD	entry_args+24(R20), R3
	MOVD	entry_args+32(R20), R4
	MOVD	entry_args+40(R20), R5
	SVC
	MOVD	R0, entry_result(R20)
	CMN	$4095, R0	// MAX_ERRNO: include/linux/err.h
	BLO	next
	MOVWU	entry_value(R20), R9
	CBZW	R9, goto
	MOVD	R20, header_failed(R21)
goto:
	MOVD	entry_target(R20), R20
	B	table

notcall:
	CMPW	$const_opGoto, R9
	BEQ	goto
	BHI	end
	MOVD	entry_nr(R20), R10
	CMPW	$const_opBranchEqual, R9
	BHS	branch
	MOVD	entry_args+0(R20), R11
	CMPW	$const_opCopyS32, R9
	BEQ	signed
	BHI	unsigned
	MOVD	(R10), R12
	MOVD	R12, (R11)
	B	next
signed:
	MOVW	(R10), R12
	MOVD	R12, (R11)
	B	next
unsigned:
	MOVWU	(R10), R12
	MOVD	R12, (R11)
	B	next
branch:
	MOVWU	(R10), R12
	MOVWU	entry_value(R20), R13
	CMPW	$const_opBranchEqual, R9
	BNE	unequal
	CMPW	R13, R12
	BEQ	goto
	B	next
unequal:
	CMPW	R13, R12
	BNE	goto
	B	next

end:
	// Tell the tracer, whose mapping of the table outlives this one: what was
	// stored before has to be seen before.
	MOVD	$1, R9
	ADD	$header_done, R21, R10
	STLRW	R9, (R10)
	MOVD	R21, R0
	MOVD	$1, R1	// FUTEX_WAKE
	MOVD	$1, R2
	MOVD	$98, R8	// futex
	SVC
unmap:
	MOVD	R21, R0
	MOVD	saved_mapped(R19), R1
	MOVD	$215, R8	// munmap
	SVC
	WORD	$0xd28e263f	// mark: unmapped
	// The tracer that was woken stops the thread here, before it runs any
	// code of its own again. One that is gone is not waited for. ppoll, as on
	// amd64.
	MOVD	$0, R0
	MOVD	$0, R1
	ADD	$saved_linger, R19, R2
	MOVD	$0, R3
	MOVD	$73, R8	// ppoll
	SVC
back:
	ADD	$(saved_frame-const_frameSkipped), R19, R9
	MOVD	R9, RSP
	MOVD	$139, R8	// rt_sigreturn: mask and all registers
	SVC
	WORD	$0xd28e265f	// mark: end
