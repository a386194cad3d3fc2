package ptrace

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Two things stand between a thread and the system calls of a batch: seccomp
// and syscall user dispatch.

// suspendSeccomp is PTRACE_O_SUSPEND_SECCOMP: filters, and strict mode, do not
// apply while this tracer lives and the option is set. It takes CAP_SYS_ADMIN,
// CONFIG_CHECKPOINT_RESTORE, and a tracer without filters of its own.
const suspendSeccomp = 1 << 21

// unfilteredLinger is [lingerTime] for a thread whose filters are suspended: it
// must not come to run code of its own before the tracer has put them in
// force again. They are in force at once if the tracer dies.
const unfilteredLinger = 10 * time.Second

// filtered says whether the thread has filters, or is in strict mode.
func (th *Thread) filtered() (bool, error) {
	if th.filters == unknown {
		st, err := th.Status()
		if err != nil {
			return false, err
		}
		if th.filters = no; st.Seccomp != 0 {
			th.filters = yes
		}
	}
	return th.filters == yes, nil
}

// answer is to a question that is asked at most once.
type answer uint8

const (
	unknown answer = iota
	no
	yes
)

// suspend puts the filters of the stopped thread out of force.
func (in *injection) suspend() error {
	th := in.th
	err := requestInt(unix.PTRACE_SETOPTIONS, th.TID, unix.PTRACE_O_TRACESYSGOOD|suspendSeccomp)
	switch err {
	case nil:
		in.suspended = true
		return nil
	case unix.EPERM, unix.EINVAL:
		return fmt.Errorf("thread %d of process %d: %w: %w", th.TID, th.p.PID, ErrSeccomp, err)
	}
	return th.failed("suspend the filters of", err)
}

// enforce puts them in force again.
func (in *injection) enforce() error {
	if !in.suspended {
		return nil
	}
	if err := requestInt(unix.PTRACE_SETOPTIONS, in.th.TID, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return in.th.failed("put the filters in force of", err)
	}
	in.suspended = false
	return nil
}

// dispatchConfig is struct ptrace_sud_config.
type dispatchConfig struct{ mode, selector, offset, length uint64 }

// checkDispatch refuses a thread that would be sent SIGSYS for a call made at
// place (kernel/entry/syscall_user_dispatch.c). It is not switched off for the
// batch: if the tracer died, nobody would switch it on again. Kernels before
// 6.4 do not tell; there a batch is broken off by its first call.
func (th *Thread) checkDispatch(place region) error {
	var c dispatchConfig
	err := request(getDispatch, th.TID, unsafe.Sizeof(c), unsafe.Pointer(&c))
	if err == unix.EIO || err == unix.EINVAL || err == nil && c.mode == 0 {
		return nil
	}
	if err != nil {
		return th.failed("read the syscall user dispatch of", err)
	}
	if c.length > 0 && place.start-c.offset < c.length && place.end-c.offset <= c.length {
		return nil // calls made here are let through
	}
	const allow = 0 // SYSCALL_DISPATCH_FILTER_ALLOW
	selector := [1]byte{allow + 1}
	if c.selector != 0 {
		if err := th.p.readMem(c.selector, selector[:]); err != nil {
			return err
		}
	}
	if selector[0] == allow { // and nobody is there to change it
		return nil
	}
	return fmt.Errorf("thread %d of process %d: %w", th.TID, th.p.PID, ErrDispatch)
}
