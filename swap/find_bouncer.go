package swap

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bouncer lets in as many readers at a time as there is work for the
// processors, and gives the place of one that does not come on to the next:
// a reader may be stuck in the kernel for good.
type bouncer struct{ places chan struct{} }

const (
	// slow is when a reader's place is given on.
	slow = 20 * time.Millisecond
	// patience is when a reader that sleeps is given up. One that computes (a
	// smaps of many gigabytes) is waited for longer.
	patience = 300 * time.Millisecond
	// endless is when one that computes is given up all the same.
	endless = 10 * time.Second
)

func newBouncer() *bouncer { return &bouncer{make(chan struct{}, 2*runtime.GOMAXPROCS(0))} }

// enter waits for a place.
func (b *bouncer) enter() { b.places <- struct{}{} }

// watched is a reader that has entered.
type watched struct {
	leave sync.Once
	b     *bouncer
	timer *time.Timer
	tid   atomic.Int32
	since time.Time
	given chan struct{}
	over  atomic.Bool
}

// watch runs read on a thread that can be told from outside to be stuck.
func (b *bouncer) watch(read func()) *watched {
	w := &watched{b: b, since: time.Now(), given: make(chan struct{})}
	w.timer = time.AfterFunc(slow, w.leavePlace)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		w.tid.Store(int32(unix.Gettid()))
		read()
	}()
	return w
}

func (w *watched) leavePlace() { w.leave.Do(func() { <-w.b.places }) }

// end says that the reader is done.
func (w *watched) end() {
	w.over.Store(true)
	w.timer.Stop()
	w.leavePlace()
}

// stuck returns a channel that is closed when the reader is to be given up.
func (w *watched) stuck(ctx context.Context) <-chan struct{} {
	given := make(chan struct{})
	var check func()
	check = func() {
		switch {
		case w.over.Load():
		case ctx.Err() == nil && time.Since(w.since) < endless && w.computes():
			time.AfterFunc(patience/4, check)
		default:
			close(given)
		}
	}
	time.AfterFunc(time.Until(w.since.Add(patience)), check)
	return given
}

// computes says whether the reader's thread is running, not waiting.
func (w *watched) computes() bool {
	tid := w.tid.Load()
	if tid == 0 {
		return true // not started yet
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	if err != nil {
		return false
	}
	stat, err := parseStat(text)
	return err == nil && stat.state == 'R'
}
