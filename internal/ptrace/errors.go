package ptrace

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a caller may decide upon. Every error says which process or thread it
// is about and wraps one of these, an errno, or a type below.
var (
	ErrGone         = errors.New("it has exited")
	ErrKernelThread = errors.New("it is a kernel thread")
	ErrTimeout      = errors.New("it did not stop in time")
	ErrArch         = errors.New("it is a 32-bit task")
	ErrMachine      = errors.New("processes are not stopped on this kind of processor")
	ErrNoVDSO       = errors.New("it has no vDSO")
	ErrNoSlack      = errors.New("its vDSO has no room behind the text")
	ErrResidueInUse = errors.New("what a tracer that died left in the vDSO may still be executed")
	ErrSeccomp      = errors.New("its seccomp filters can't be suspended")
	ErrForbidden    = errors.New("its seccomp filters don't allow what it would have to do by itself if this program were killed")
	ErrDispatch     = errors.New("its system calls are dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH)")
	ErrBusy         = errors.New("a batch is under way in it")
	ErrClosed       = errors.New("the tracer is closed")
	ErrAbandoned    = errors.New("the batch was broken off")
	ErrUnbound      = errors.New("a label of the program was never bound")
)

// errResidue is cleaned up, or becomes an ErrResidueInUse.
var errResidue = errors.New("its vDSO holds what a tracer that died left there")

// TracedError says that another tracer holds a process.
type TracedError struct {
	PID    int // the process or thread asked for
	Tracer int // who traces it
}

func (e *TracedError) Error() string {
	return fmt.Sprintf("process %d is traced by process %d", e.PID, e.Tracer)
}

// TimeoutError names the thread that did not stop. It is an [ErrTimeout], and
// wraps the context's error.
type TimeoutError struct {
	PID, TID int
	State    byte // of /proc/TID/status: 'D' is uninterruptible sleep
	cause    error
}

func (e *TimeoutError) Error() string {
	s := fmt.Sprintf("thread %d of process %d did not stop in time (state %c", e.TID, e.PID, e.State)
	if e.State == 'D' {
		s += ", uninterruptible: it waits for a device or a file system"
	}
	return s + ")"
}

func (e *TimeoutError) Unwrap() []error { return []error{ErrTimeout, e.cause} }

// CallError is a system call of a program that failed and was not allowed to.
type CallError struct {
	PID   int
	Index int // of the call in the program, counting calls from 0
	Name  string
	Errno unix.Errno
}

func (e *CallError) Error() string {
	return fmt.Sprintf("process %d: %s (call %d of the batch): %v", e.PID, e.Name, e.Index, e.Errno)
}

func (e *CallError) Unwrap() error { return e.Errno }
