package ptrace

import (
	"context"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Await32 waits until the 32 bits at r are no longer old, or the program has
// ended, and returns what they are then. The program wakes the wait by
// FUTEX_WAKE on r (not FUTEX_PRIVATE_FLAG: the memory is shared). The error is
// ctx's, or [ErrGone] if the process was killed; what else may have ended a
// program that has not touched r is for [Batch.Wait] to explain.
func (b *Batch) Await32(ctx context.Context, r Ref, old uint32) (uint32, error) {
	const futexWait = 0
	interval := unix.NsecToTimespec(int64(checkInterval))
	for {
		if v := b.Load32(r); v != old {
			return v, nil
		}
		if atomic.LoadUint32(b.done()) != 0 || b.over {
			return b.Load32(r), nil
		}
		if err := ctx.Err(); err != nil {
			return old, err
		}
		var err error
		b.in.th.p.t.try(func() { err = b.glance() })
		if err != nil {
			return old, err
		}
		if b.over {
			continue
		}
		// Returns at once if the word has changed already (kernel/futex,
		// futex_wait_setup). The interval bounds how long a thread that was
		// killed or stopped is waited for.
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.word(r))), futexWait, uintptr(old),
			uintptr(unsafe.Pointer(&interval)), 0, 0)
	}
}

// glance keeps the thread going that a batch is under way in. A stop that ends
// the batch is left for Wait.
func (b *Batch) glance() error {
	s, ok := b.in.th.poll()
	if !ok {
		return nil
	}
	err := b.stoppedAt(s)
	switch {
	case err != nil:
		b.in.th.seen = &s
	case b.over:
		b.finish(nil)
	}
	return err
}
