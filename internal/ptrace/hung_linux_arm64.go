package ptrace

// callAgain makes the thread make the call that r is at the exit of again. The
// kernel does not show an argument that the result has taken the place of:
// it restarts the call itself if it is told to.
func callAgain(r *Regs) {
	const eRestartNoIntr = -513 // include/linux/errno.h
	setResult(r, eRestartNoIntr)
}

func setResult(r *Regs, result int64) { r.Regs[0] = uint64(result) }

func callOf(r *Regs) (args [6]uint64, result int64) {
	copy(args[1:], r.Regs[1:6])
	return args, int64(r.Regs[0])
}
