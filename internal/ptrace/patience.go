package ptrace

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PTRACE_SEIZE is the one request that can block, and for ever: it takes the
// mutex that a process holds while it is in exec (kernel/ptrace.c,
// ptrace_attach: cred_guard_mutex). There, exec may wait for a file system, or
// for the tracer of the process's other threads to take note that they died
// (fs/exec.c, de_thread), which is the tracer that is blocked.
//
// A signal gets the request out of its wait, but the kernel restarts it after
// any handler (ERESTARTNOINTR). So there is a handler that says otherwise, and
// a timer that keeps sending the signal to the tracer's thread.
const (
	patienceSignal = unix.Signal(62) // nobody's, and not the Go runtime's to interpret
	// Longer than a tick of the clock, so that starting and stopping the timer
	// does not program the hardware: that costs more than a SEIZE.
	patience = 5 * time.Millisecond
)

//lint:ignore U1000 the assembly uses it
func breakSeize()

//lint:ignore U1000 the assembly uses it
func sigreturn()

func handlerAddrs() (handler, restorer uintptr)

// handleSignal installs breakSeize. It is for the whole program, and does
// nothing to a thread that is not in PTRACE_SEIZE.
var handleSignal = sync.OnceValue(func() error {
	const saSiginfo, saOnstack, saRestart, saRestorer = 0x4, 0x08000000, 0x10000000, 0x04000000
	var action struct { // the kernel's struct sigaction
		handler  uintptr
		flags    uint64
		restorer uintptr
		mask     uint64
	}
	action.handler, action.restorer = handlerAddrs()
	action.flags = saSiginfo | saOnstack | saRestart | saRestorer
	action.mask = allSignals
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(patienceSignal), uintptr(unsafe.Pointer(&action)), 0, sigsetSize, 0, 0)
	if e != 0 {
		return fmt.Errorf("handle signal %d: %w", patienceSignal, e)
	}
	return nil
})

// timer sends the tracer's thread its signal while it is running.
type timer struct {
	id    int32
	ready bool
}

// start makes the timer tick. It runs on the tracer's thread.
func (t *timer) start(tid int) error {
	if !t.ready {
		if err := t.create(tid); err != nil {
			return err
		}
	}
	return t.set(patience)
}

func (t *timer) stop() {
	// Fails only for a timer that isn't there.
	_ = t.set(0)
}

func (t *timer) create(tid int) error {
	if err := handleSignal(); err != nil {
		return err
	}
	unblock := uint64(1) << (patienceSignal - 1)
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_UNBLOCK, uintptr(unsafe.Pointer(&unblock)), 0, sigsetSize, 0, 0)
	if e != 0 {
		return fmt.Errorf("unblock signal %d: %w", patienceSignal, e)
	}
	const threadID = 4 // SIGEV_THREAD_ID
	var event struct { // struct sigevent
		value  uint64
		signo  int32
		notify int32
		tid    int32
		_      [44]byte
	}
	event.signo, event.notify, event.tid = int32(patienceSignal), threadID, int32(tid)
	_, _, e = unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&t.id)))
	if e != 0 {
		return fmt.Errorf("create a timer: %w", e)
	}
	t.ready = true
	return nil
}

func (t *timer) set(d time.Duration) error {
	every := unix.NsecToTimespec(int64(d))
	spec := [2]unix.Timespec{every, every} // struct itimerspec: interval, first
	_, _, e := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(t.id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("set a timer: %w", e)
	}
	return nil
}

func (t *timer) close() {
	if t.ready {
		unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(t.id), 0, 0)
		t.ready = false
	}
}
