package ptrace

import (
	"context"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Await32 waits until the 32 bits at r are no longer old, and returns what
// they are then. The program wakes the wait by FUTEX_WAKE on r (not
// FUTEX_PRIVATE_FLAG: the memory is shared). The error is ctx's; a program
// that ended without touching r is for [Batch.Wait] to explain.
func (b *Batch) Await32(ctx context.Context, r Ref, old uint32) (uint32, error) {
	const futexWait = 0
	interval := unix.NsecToTimespec(int64(checkInterval))
	for {
		if v := b.Load32(r); v != old {
			return v, nil
		}
		if atomic.LoadUint32(b.done()) != 0 {
			return b.Load32(r), nil
		}
		if err := ctx.Err(); err != nil {
			return old, err
		}
		// Returns at once if the word has changed already (kernel/futex,
		// futex_wait_setup). The interval only bounds how long a thread that
		// was killed is waited for.
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.word(r))), futexWait, uintptr(old),
			uintptr(unsafe.Pointer(&interval)), 0, 0)
	}
}
