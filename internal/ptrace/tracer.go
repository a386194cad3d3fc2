package ptrace

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Tracer owns one operating system thread, from which everything is traced.
type Tracer struct {
	tid   int
	calls chan func()
	done  chan struct{} // closed when the thread is about to end
	once  sync.Once

	// strays are threads that could not be let go yet: they were asked to
	// stop and have not, in uninterruptible sleep, or they are dying.
	strays []*Thread

	timer timer

	filters map[string]*filter // those of all threads so far, by their instructions
}

// New starts a tracer's thread.
func New() *Tracer {
	t := &Tracer{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan struct{})
	go t.run(ready)
	<-ready
	return t
}

func (t *Tracer) run(ready chan struct{}) {
	// Never unlocked: the runtime then ends the thread with the goroutine,
	// and the kernel detaches whatever is still seized
	// (kernel/ptrace.c, exit_ptrace).
	runtime.LockOSThread()
	if t.tid = unix.Gettid(); t.tid == unix.Getpid() {
		// The runtime never ends the main thread (runtime, mexit). While this
		// goroutine has it, another gets a different one.
		defer runtime.UnlockOSThread()
		go t.run(ready)
		<-ready
		return
	}
	close(ready)
	defer close(t.done)
	defer t.timer.close()
	for {
		var again <-chan time.Time
		if len(t.strays) > 0 {
			again = time.After(strayInterval)
		}
		select {
		case f := <-t.calls:
			if f == nil {
				return
			}
			f()
		case <-again:
		}
		t.strays = release(t.strays)
	}
}

// strayInterval is how often threads that would not stop are looked at again.
const strayInterval = 5 * time.Millisecond

// release lets go those threads that have stopped, takes note of those that
// have died, and returns the rest.
func release(ths []*Thread) (left []*Thread) {
	for _, th := range ths {
		s, ok := th.poll()
		switch {
		case !ok:
			left = append(left, th)
		case s.kind == stopGone:
		default:
			if s.kind == stopEvent {
				// Fails for those that were killed since, or may not be
				// touched: they are let go as they are.
				_ = th.stoppedAgain()
			}
			if requestInt(unix.PTRACE_DETACH, th.TID, uintptr(s.deliverable())) != nil {
				left = append(left, th)
			}
		}
	}
	return left
}

// takeStray returns the thread of that number among the strays, which then is
// the caller's; nil if there is none.
func (t *Tracer) takeStray(tid int) *Thread {
	for i, th := range t.strays {
		if th.TID == tid {
			t.strays = append(t.strays[:i], t.strays[i+1:]...)
			return th
		}
	}
	return nil
}

// Close ends the tracer's thread. Processes that were not released go on
// running. Calls made after it return [ErrClosed].
func (t *Tracer) Close() {
	t.once.Do(func() { t.calls <- nil })
	<-t.done
}

// try runs f on the tracer's thread unless that is at work, and says whether it
// did.
func (t *Tracer) try(f func()) bool {
	if unix.Gettid() == t.tid {
		f()
		return true
	}
	finished := make(chan struct{})
	select {
	case t.calls <- func() { defer close(finished); f() }:
		<-finished
		return true
	default:
		return false
	}
}

// Do runs f on the tracer's thread and returns its error. Methods of the
// tracer, its processes, threads and batches that f calls cost no further
// switch of threads. f must not wait for another goroutine that uses the same
// tracer, and must not start child processes: their exits would be the
// tracer's to wait for.
func (t *Tracer) Do(f func() error) error {
	if unix.Gettid() == t.tid { // the thread is locked: this is its goroutine
		return f()
	}
	var err error
	finished := make(chan struct{})
	select {
	case t.calls <- func() { defer close(finished); err = f() }:
		<-finished
		return err
	case <-t.done:
		return ErrClosed
	}
}
