package ptrace

// callAgain makes the kernel restart the call that r is in.
func callAgain(r *Regs) { setResult(r, eRestartNoIntr) }

func setResult(r *Regs, result int64) { r.Rax = uint64(result) }

func callOf(r *Regs) (args [6]uint64, result int64) {
	return [6]uint64{r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9}, int64(r.Rax)
}
