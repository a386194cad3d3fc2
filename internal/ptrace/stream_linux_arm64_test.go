package ptrace

import (
	"testing"

	"spfs/internal/ptrace/jump"
)

const nzcv = 0xf << 28

// patterned are the registers of a thread, no two of them alike.
func patterned(sp, pc uint64) (r Regs, more extra) {
	for i := range r.Regs {
		r.Regs[i] = 0x1111000000000000 + uint64(i)
	}
	r.Sp, r.Pc, r.Pstate, r.call = sp, pc, 0xa<<28, -1
	for i := range more.vregs {
		more.vregs[i] = 0x2222000000000000 + uint64(i)
	}
	return r, more
}

func toJump(r *Regs) *jump.Registers {
	to := new(jump.Registers)
	copy(to[:], r.Regs[:])
	to[31], to[32] = r.Sp, r.Pstate&nzcv^nzcv // other flags than it ends with
	return to
}

func landed(t *testing.T, want *Regs, more *extra, got *jump.Registers) {
	t.Helper()
	for i, v := range want.Regs {
		if got[i] != v {
			t.Errorf("x%d is %#x, want %#x", i, got[i], v)
		}
	}
	if got[31] != want.Sp || got[32] != want.Pstate&nzcv {
		t.Errorf("sp is %#x, nzcv %#x, want %#x, %#x", got[31], got[32], want.Sp, want.Pstate&nzcv)
	}
	for i, v := range more.vregs {
		if got[34+i] != v {
			t.Errorf("half %d of v%d is %#x, want %#x", i%2, i/2, got[34+i], v)
		}
	}
}
