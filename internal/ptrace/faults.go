package ptrace

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// faultSignals are those that code brings on itself. SIGSYS is what seccomp
// and syscall user dispatch may answer a call with.
var faultSignals = [...]unix.Signal{unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGFPE, unix.SIGTRAP, unix.SIGSYS}

func sigBit(sig unix.Signal) uint64 { return 1 << (sig - 1) }

func isFault(sig unix.Signal) bool {
	for _, f := range faultSignals {
		if sig == f {
			return true
		}
	}
	return false
}

// blockedDuring is the signal mask for a batch in a thread that has the given
// one. A fault whose signal is blocked would make the kernel forget the
// process's handler (kernel/signal.c, force_sig_info_to_task), so those that
// the thread does not block itself are left out.
func blockedDuring(mask uint64) uint64 {
	during := allSignals
	for _, f := range faultSignals {
		during &^= sigBit(f) &^ mask
	}
	return during
}

// pass returns the signal that a thread in a batch, which has stopped, is to
// be resumed with. The error is [ErrAbandoned] if the batch has brought it on
// itself; then it must not be delivered.
func (in *injection) pass(s stop) (unix.Signal, error) {
	if s.kind != stopSignal || !isFault(s.sig) {
		return s.deliverable(), nil
	}
	th := in.th
	var info struct { // siginfo_t
		signo, errno, code int32
		_                  [116]byte
	}
	if err := request(unix.PTRACE_GETSIGINFO, th.TID, 0, unsafe.Pointer(&info)); err != nil {
		return 0, th.failed("read the signal of", err)
	}
	if info.code > 0 { // from the kernel (include/uapi/asm-generic/siginfo.h, SI_FROMUSER)
		return 0, fmt.Errorf("thread %d of process %d: %v in the batch: %w", th.TID, th.p.PID, s.sig, ErrAbandoned)
	}
	// Sent by somebody. Blocked now, it is queued again by the kernel
	// (kernel/signal.c, ptrace_signal), for when the batch is over.
	if err := setMask(th.TID, allSignals); err != nil {
		return 0, th.failed("block signals of", err)
	}
	return s.sig, nil
}

// halt brings a thread in a batch, running or not, to an event stop. Faults of
// the batch are dropped.
func (in *injection) halt(ctx context.Context) error {
	th := in.th
	if err := th.interrupt(); err != nil {
		return err
	}
	if th.stopped {
		if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
			return err
		}
	}
	return th.settleBy(ctx, func(s stop) (unix.Signal, error) {
		sig, err := in.pass(s)
		if errors.Is(err, ErrAbandoned) {
			return 0, nil
		}
		return sig, err
	})
}
