#include "textflag.h"

// func To(in *Registers, pc uintptr, out *Registers)
TEXT ·To(SB), NOSPLIT|NOFRAME, $0-24
	MOVQ	in+0(FP), AX
	MOVQ	pc+8(FP), CX
	MOVQ	out+16(FP), DX
	MOVQ	DX, ·kept+0(SB)
	MOVQ	SP, ·kept+8(SB)
	MOVQ	R14, ·kept+16(SB)
	MOVQ	BP, ·kept+24(SB)
	MOVQ	120(AX), SP
	BYTE	$0x51	// push %rcx, for the RET: the assembler would want it balanced
	MOVQ	8(AX), BX
	MOVQ	16(AX), CX
	MOVQ	24(AX), DX
	MOVQ	32(AX), SI
	MOVQ	40(AX), DI
	MOVQ	48(AX), BP
	MOVQ	56(AX), R8
	MOVQ	64(AX), R9
	MOVQ	72(AX), R10
	MOVQ	80(AX), R11
	MOVQ	88(AX), R12
	MOVQ	96(AX), R13
	MOVQ	104(AX), R14
	MOVQ	112(AX), R15
	MOVQ	0(AX), AX
	RET	// to pc

TEXT landing<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	AX, ·landed+0(SB)
	MOVQ	BX, ·landed+8(SB)
	MOVQ	CX, ·landed+16(SB)
	MOVQ	DX, ·landed+24(SB)
	MOVQ	SI, ·landed+32(SB)
	MOVQ	DI, ·landed+40(SB)
	MOVQ	BP, ·landed+48(SB)
	MOVQ	R8, ·landed+56(SB)
	MOVQ	R9, ·landed+64(SB)
	MOVQ	R10, ·landed+72(SB)
	MOVQ	R11, ·landed+80(SB)
	MOVQ	R12, ·landed+88(SB)
	MOVQ	R13, ·landed+96(SB)
	MOVQ	R14, ·landed+104(SB)
	MOVQ	R15, ·landed+112(SB)
	MOVQ	SP, ·landed+120(SB)
	PUSHFQ
	POPQ	AX
	MOVQ	AX, ·landed+128(SB)
	MOVQ	·kept+0(SB), DX
	MOVQ	·landed+0(SB), AX
	MOVQ	AX, 0(DX)
	MOVQ	·landed+8(SB), AX
	MOVQ	AX, 8(DX)
	MOVQ	·landed+16(SB), AX
	MOVQ	AX, 16(DX)
	MOVQ	·landed+24(SB), AX
	MOVQ	AX, 24(DX)
	MOVQ	·landed+32(SB), AX
	MOVQ	AX, 32(DX)
	MOVQ	·landed+40(SB), AX
	MOVQ	AX, 40(DX)
	MOVQ	·landed+48(SB), AX
	MOVQ	AX, 48(DX)
	MOVQ	·landed+56(SB), AX
	MOVQ	AX, 56(DX)
	MOVQ	·landed+64(SB), AX
	MOVQ	AX, 64(DX)
	MOVQ	·landed+72(SB), AX
	MOVQ	AX, 72(DX)
	MOVQ	·landed+80(SB), AX
	MOVQ	AX, 80(DX)
	MOVQ	·landed+88(SB), AX
	MOVQ	AX, 88(DX)
	MOVQ	·landed+96(SB), AX
	MOVQ	AX, 96(DX)
	MOVQ	·landed+104(SB), AX
	MOVQ	AX, 104(DX)
	MOVQ	·landed+112(SB), AX
	MOVQ	AX, 112(DX)
	MOVQ	·landed+120(SB), AX
	MOVQ	AX, 120(DX)
	MOVQ	·landed+128(SB), AX
	MOVQ	AX, 128(DX)
	MOVQ	·kept+8(SB), SP
	MOVQ	·kept+16(SB), R14
	MOVQ	·kept+24(SB), BP
	RET

// func Landing() uintptr
TEXT ·Landing(SB), NOSPLIT, $0-8
	LEAQ	landing<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
