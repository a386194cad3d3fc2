package ptrace

import (
	"testing"

	"spfs/internal/ptrace/jump"
)

const arithmetic = 0x8d5 // OF, SF, ZF, AF, PF, CF

// patterned are the registers of a thread, no two of them alike.
func patterned(sp, pc uint64) (r Regs, more extra) {
	for i, at := range general(&r) {
		*at = 0x1111000000000000 + uint64(i)
	}
	r.Rsp, r.Rip, r.Eflags = sp, pc, 0x202|0x891 // OF, SF, AF, CF
	return r, more
}

// general are the registers in the order of package jump.
func general(r *Regs) []*uint64 {
	return []*uint64{&r.Rax, &r.Rbx, &r.Rcx, &r.Rdx, &r.Rsi, &r.Rdi, &r.Rbp, &r.R8, &r.R9, &r.R10, &r.R11,
		&r.R12, &r.R13, &r.R14, &r.R15, &r.Rsp}
}

func toJump(r *Regs) *jump.Registers {
	to := new(jump.Registers)
	for i, at := range general(r) {
		to[i] = *at
	}
	return to
}

func landed(t *testing.T, want *Regs, _ *extra, got *jump.Registers) {
	t.Helper()
	for i, at := range general(want) {
		if got[i] != *at {
			t.Errorf("register %d is %#x, want %#x", i, got[i], *at)
		}
	}
	if got[16]&arithmetic != want.Eflags&arithmetic {
		t.Errorf("flags are %#x, want %#x", got[16]&arithmetic, want.Eflags&arithmetic)
	}
}
