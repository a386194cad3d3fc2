package ptrace

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and constants of include/uapi/linux/ptrace.h that x/sys/unix lacks.
const (
	getSigmask     = 0x420a // PTRACE_GETSIGMASK
	setSigmask     = 0x420b // PTRACE_SETSIGMASK
	getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO
	getRseqConfig  = 0x420f // PTRACE_GET_RSEQ_CONFIGURATION, since Linux 5.13
	setDispatch    = 0x4210 // PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, since 6.4
	getDispatch    = 0x4211 // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, since 6.4
	eventStop      = 128    // PTRACE_EVENT_STOP

	sigsetSize = 8 // the kernel's sigset_t, in bytes
)

// allSignals is a mask of every signal; the kernel leaves out SIGKILL and
// SIGSTOP by itself.
const allSignals = ^uint64(0)

// request is ptrace(2). It never blocks, so the runtime need not be told.
func request(req, tid int, addr uintptr, data unsafe.Pointer) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, uintptr(data), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// requestInt is request with a plain number as data.
func requestInt(req, tid int, data uintptr) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), 0, data, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func getMask(tid int) (mask uint64, err error) {
	err = request(getSigmask, tid, sigsetSize, unsafe.Pointer(&mask))
	return mask, err
}

func setMask(tid int, mask uint64) error {
	return request(setSigmask, tid, sigsetSize, unsafe.Pointer(&mask))
}
