package ptrace

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Regs is a thread's registers (struct user_pt_regs), and the system call that
// it is in.
type Regs struct {
	unix.PtraceRegs
	call int64 // -1 if it is in none; see interrupted
}

// Register sets (include/uapi/linux/elf.h).
const (
	ntPRSTATUS   = 1
	ntPRFPREG    = 2
	ntSystemCall = 0x404 // NT_ARM_SYSTEM_CALL
)

// Bits of PSTATE (arch/arm64/include/uapi/asm/ptrace.h).
const (
	pstate32    = 0x10       // PSR_MODE32_BIT
	pstateBType = 0x3 << 10  // PSR_BTYPE_MASK: what kind of branch has just been taken
	svc         = 0xd4000001 // svc #0
	svcBytes    = 4
	resultEINTR = ^uint64(unix.EINTR) + 1
)

// Supported says why processes can't be stopped on this architecture.
//
// The kernel rewinds a thread that it has interrupted in a system call before
// the tracer sees it, and keeps to itself that it did, and for which reason
// (arch/arm64/kernel/signal.c, do_signal: forget_syscall, and retval, which is
// a local variable). On amd64 that is in the registers. Put back after a batch,
// the thread makes its call again also if a signal has come that must end it with
// EINTR: pause and sigsuspend then never return. Nor is the SVE state of a thread
// that was computing kept, as a system call discards that. Neither has been solved.
func Supported() error {
	return fmt.Errorf("%w (aarch64): a signal that interrupts a system call could be lost, and the state of SVE", ErrMachine)
}

// regset is PTRACE_GETREGSET or PTRACE_SETREGSET. It returns how many bytes the
// kernel had or took.
func regset(req, tid, set int, data unsafe.Pointer, size uintptr) (uintptr, error) {
	iov := struct {
		base unsafe.Pointer
		size uintptr
	}{data, size}
	err := request(req, tid, uintptr(set), unsafe.Pointer(&iov))
	return iov.size, err
}

func getRegs(tid int, r *Regs) error {
	size := unsafe.Sizeof(r.PtraceRegs)
	n, err := regset(unix.PTRACE_GETREGSET, tid, ntPRSTATUS, unsafe.Pointer(&r.PtraceRegs), size)
	if err != nil {
		return err
	}
	r.call = -1
	if n != size { // a 32-bit task has fewer
		r.Pstate |= pstate32
		return nil
	}
	var nr int32
	if _, err = regset(unix.PTRACE_GETREGSET, tid, ntSystemCall, unsafe.Pointer(&nr), unsafe.Sizeof(nr)); err != nil {
		return err
	}
	r.call = int64(nr)
	return nil
}

// writeRegs also tells the kernel in which system call the thread is, as it
// looks for one to restart only if it is in one.
func (th *Thread) writeRegs(r *Regs) error {
	nr := int32(r.call)
	_, err := regset(unix.PTRACE_SETREGSET, th.TID, ntSystemCall, unsafe.Pointer(&nr), unsafe.Sizeof(nr))
	if err == nil {
		_, err = regset(unix.PTRACE_SETREGSET, th.TID, ntPRSTATUS, unsafe.Pointer(&r.PtraceRegs), unsafe.Sizeof(r.PtraceRegs))
	}
	if err != nil {
		return th.failed("write registers of", err)
	}
	return nil
}

func supported(r *Regs) bool { return r.Pstate&pstate32 == 0 }

// interrupted returns the number of the system call that the registers are in.
// Only at its entry and its exit it can be seen: see Supported.
func interrupted(r *Regs) (nr int, ok bool) { return int(r.call), r.call >= 0 }

// waitsIn returns the number of the system call that the thread, whose registers
// r are, waits in, or is about to make: it rests at the instruction for it.
func (th *Thread) waitsIn(r *Regs) (nr int, ok bool) {
	var b [svcBytes]byte
	if err := th.p.readMem(r.Pc, b[:]); err != nil || *(*uint32)(unsafe.Pointer(&b)) != svc {
		return 0, false
	}
	return int(r.Regs[8]), true
}

// resumed returns r as the kernel would make it for a return to user mode
// without a signal, which it has done already: but for calls that go on by
// restart_syscall. Those are made again from the start. rt_sigreturn, which r is
// put back by, would have ended them (restart_block.fn).
func (th *Thread) resumed(r Regs) (Regs, error) {
	r.call = -1
	return r, nil
}

// calledOtherwise says whether the thread is in a call of another ABI: a thread
// that is not a 32-bit task has but one.
func (th *Thread) calledOtherwise() (bool, error) { return false, nil }

// unspoil changes nothing: which call has ended with EINTR can't be seen.
func (th *Thread) unspoil(*Regs) (bool, error) { return false, nil }

// call sets r for a thread that is to make a system call by the code's first
// instruction but one.
func (in *injection) call(r *Regs, mode uint64, nr uintptr, args []uint64) {
	var a [6]uint64
	copy(a[:], args)
	r.Pc = in.place.start
	r.Pstate &^= pstateBType
	r.call = -1
	copy(r.Regs[:], a[:])
	r.Regs[8] = uint64(nr)
	r.Regs[19] = in.place.start + uint64(stateOffset)
	r.Regs[22] = mode
}

// setTable sets r for the walk through a table.
func setTable(r *Regs, scratch, first uint64) { r.Regs[21], r.Regs[20] = scratch, first }

// endCall makes a system call that was interrupted, and that the thread is about
// to make again, look as if it had ended with EINTR, and reports whether there was
// one.
func (th *Thread) endCall(r *Regs) bool {
	if _, ok := th.waitsIn(r); !ok {
		return false
	}
	r.Regs[0] = resultEINTR
	r.Pc += svcBytes
	r.call = -1
	return true
}

func resultOf(r *Regs) uint64 { return r.Regs[0] }

func programCounter(r *Regs) uint64 { return r.Pc }

func setProgramCounter(r *Regs, pc uint64) { r.Pc = pc }

func stackPointer(r *Regs) uint64 { return r.Sp }
