package ptrace

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Regs is a thread's registers (struct user_regs_struct).
type Regs = unix.PtraceRegs

// Errors by which the kernel tells itself how an interrupted system call goes
// on (include/linux/errno.h). A tracer sees them in RAX; programs never do.
const (
	eRestartSys      = -512 // again, unless a handler without SA_RESTART runs
	eRestartNoIntr   = -513 // again, always
	eRestartNoHand   = -514 // again, unless a handler runs
	eRestartBlock    = -516 // by restart_syscall, unless a handler runs
	syscallInsnBytes = 2    // of syscall and of int $0x80
)

// Supported says why processes can't be stopped on this architecture. They can.
func Supported() error { return nil }

func getRegs(tid int, r *Regs) error {
	return request(unix.PTRACE_GETREGS, tid, 0, unsafe.Pointer(r))
}

func (th *Thread) writeRegs(r *Regs) error {
	if err := request(unix.PTRACE_SETREGS, th.TID, 0, unsafe.Pointer(r)); err != nil {
		return th.failed("write registers of", err)
	}
	return nil
}

// userCS is the code segment of 64-bit programs (arch/x86/include/asm/segment.h,
// __USER_CS). In a 32-bit one, SYSCALL means something else.
const userCS = 0x33

func supported(r *Regs) bool { return r.Cs == userCS }

// interrupted returns the number of the system call that the registers are in.
func interrupted(r *Regs) (nr int, ok bool) {
	return int(int64(r.Orig_rax)), int64(r.Orig_rax) >= 0
}

// resumed returns r as the kernel would make it for a return to user mode
// without a signal (arch/x86/kernel/signal.c, arch_do_signal_or_restart). With
// it, a thread can be sent on its way by a jump.
func (th *Thread) resumed(r Regs) (Regs, error) {
	if _, ok := interrupted(&r); ok {
		switch int64(r.Rax) {
		case eRestartSys, eRestartNoIntr, eRestartNoHand:
			r.Rax = r.Orig_rax
			r.Rip -= syscallInsnBytes
		case eRestartBlock:
			nr, err := th.restartSyscall(&r)
			if err != nil {
				return r, err
			}
			r.Rax = nr
			r.Rip -= syscallInsnBytes
		}
	}
	r.Orig_rax = ^uint64(0) // no system call: nothing for the kernel to restart
	return r, nil
}

// restartSyscall is the number of restart_syscall in the ABI that the thread
// made its call by (get_nr_restart_syscall).
func (th *Thread) restartSyscall(r *Regs) (uint64, error) {
	const x32 = 0x40000000
	i386, err := th.calledOtherwise()
	switch {
	case err != nil:
		return 0, err
	case i386:
		return 0, nil
	}
	return unix.SYS_RESTART_SYSCALL | r.Orig_rax&x32, nil
}

// calledOtherwise says whether the thread is in a call made by int $0x80, whose
// numbers are i386's also in a 64-bit program.
func (th *Thread) calledOtherwise() (bool, error) {
	var info struct { // struct ptrace_syscall_info, its first part
		op   uint8
		_    [3]uint8
		arch uint32
		_    [80]byte
	}
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(th.TID), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if e == unix.EIO { // before Linux 5.3
		return false, nil
	}
	if e != 0 {
		return false, th.failed("read the system call of", e)
	}
	return info.arch == unix.AUDIT_ARCH_I386, nil
}

// onlyInterrupted lists calls that end with a plain EINTR on any interruption,
// also one by a tracer, after which the kernel never restarts them (signal(7),
// "Interruption of system calls and library functions by stop signals"), and
// those that a FUSE daemon may have ended with it because it was told of the
// interruption. All are without effect when they fail so. close is not among
// them: it has closed.
var onlyInterrupted = map[int]bool{
	unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS: true, unix.SYS_MSGRCV: true, unix.SYS_MSGSND: true,
	// Sockets with SO_RCVTIMEO or SO_SNDTIMEO (include/net/sock.h, sock_intr_errno).
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_WRITE: true, unix.SYS_WRITEV: true,
	unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true, unix.SYS_CONNECT: true,
	// Files of a FUSE mount.
	unix.SYS_PREAD64: true, unix.SYS_PWRITE64: true, unix.SYS_PREADV: true, unix.SYS_PWRITEV: true,
	unix.SYS_PREADV2: true, unix.SYS_PWRITEV2: true, unix.SYS_FSYNC: true, unix.SYS_FDATASYNC: true,
	unix.SYS_OPEN: true, unix.SYS_OPENAT: true, unix.SYS_OPENAT2: true,
	unix.SYS_STAT: true, unix.SYS_LSTAT: true, unix.SYS_FSTAT: true, unix.SYS_NEWFSTATAT: true,
	unix.SYS_STATX: true, unix.SYS_STATFS: true, unix.SYS_FSTATFS: true, unix.SYS_ACCESS: true,
	unix.SYS_FACCESSAT: true, unix.SYS_FACCESSAT2: true, unix.SYS_READLINK: true, unix.SYS_READLINKAT: true,
	unix.SYS_GETDENTS: true, unix.SYS_GETDENTS64: true, unix.SYS_CHDIR: true, unix.SYS_FCHDIR: true,
}

// unspoil gives a call that our interruption ended with EINTR back to the
// kernel's own judgement: with ERESTARTNOHAND it is restarted, unless a signal
// arrives whose handler must see it end with EINTR. It reports whether r was
// changed.
func (th *Thread) unspoil(r *Regs) (bool, error) {
	nr, ok := interrupted(r)
	if !ok || int64(r.Rax) != -int64(unix.EINTR) || !onlyInterrupted[nr] {
		return false, nil
	}
	i386, err := th.calledOtherwise()
	if err != nil || i386 {
		return false, err
	}
	restart := int64(eRestartNoHand)
	r.Rax = uint64(restart)
	return true, nil
}

// call sets r for a thread that is to make a system call by the code's first
// instruction.
func (in *injection) call(r *Regs, mode uint64, nr uintptr, args []uint64) {
	var a [6]uint64
	copy(a[:], args)
	r.Rip = in.place.start
	r.Orig_rax = ^uint64(0)
	r.Rax = uint64(nr)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
	r.R12 = mode
	r.R15 = in.place.start + uint64(stateOffset)
}

// setTable sets r for the walk through a table.
func setTable(r *Regs, scratch, first uint64) { r.R13, r.R14 = scratch, first }

func resultOf(r *Regs) uint64 { return r.Rax }

func programCounter(r *Regs) uint64 { return r.Rip }

// waitsIn returns the number of the system call that the thread, whose registers
// r are, waits in.
func (th *Thread) waitsIn(r *Regs) (nr int, ok bool) { return interrupted(r) }

// endCall makes a system call that was interrupted look as if it had ended
// with EINTR, and reports whether there was one.
func (th *Thread) endCall(r *Regs) bool {
	if _, ok := interrupted(r); !ok {
		return false
	}
	eintr := -int64(unix.EINTR)
	r.Rax, r.Orig_rax = uint64(eintr), ^uint64(0)
	return true
}

func setProgramCounter(r *Regs, pc uint64) { r.Rip = pc }

func stackPointer(r *Regs) uint64 { return r.Rsp }
