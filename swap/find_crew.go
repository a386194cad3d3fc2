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

// crew reads processes with as many threads as there are processors. A thread
// may get stuck in the kernel, for good even; then another one takes its place,
// and the process is given up with what was read of it until then.
type crew struct {
	ctx   context.Context
	visit func(*reader, *visit)

	mu       sync.Mutex
	todo     []*visit
	readers  map[*reader]bool // that are in a visit
	left     int              // visits that have not ended
	finished chan struct{}    // closed when none is left
}

// visit is the reading of one process. Its fields are the crew's until it has
// ended.
type visit struct {
	pid     int
	inode   uint64     // of its directory in /proc
	brief   bool       // it got stuck before: it is not waited for as long
	stopped bool       // by us, since before the look
	before  *reading   // what was read of it that holds still, or nil
	use     *kernelUse // if it was not stopped then: what it has now, and had
	reading *reading
	memory  memoryRead
	err     error
	stuck   bool
	hung    *reading // what could be read all the same of one that is stuck
}

// reader is one thread of a crew, and its buffers.
type reader struct {
	crew  *crew
	small []byte
	large []byte

	tid      atomic.Int32
	visit    *visit
	since    time.Time
	replaced bool
}

const (
	// slow is when a thread's place is given on.
	slow = 20 * time.Millisecond
	// patience is when a thread that sleeps is given up. One that computes (a
	// smaps of many gigabytes) is waited for longer.
	patience = 2 * time.Second
	// endless is when one that computes is given up all the same.
	endless = 10 * time.Second
)

// run makes the visits, and returns when all have ended.
func (c *crew) run(visits []*visit) {
	if len(visits) == 0 {
		return
	}
	c.todo, c.left = visits, len(visits)
	c.readers, c.finished = map[*reader]bool{}, make(chan struct{})
	for range min(runtime.GOMAXPROCS(0), len(visits)) {
		c.hire()
	}
	tick := time.NewTicker(slow)
	defer tick.Stop()
	for {
		select {
		case <-c.finished:
			return
		case <-tick.C:
			c.lookAfter()
		}
	}
}

// hire starts one more thread.
func (c *crew) hire() {
	w := &reader{crew: c, small: make([]byte, 4096), large: make([]byte, 64<<10)}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		w.tid.Store(int32(unix.Gettid()))
		for v := w.next(nil); v != nil; v = w.next(v) {
			c.visit(w, v)
		}
	}()
}

// next ends a visit and begins another, unless w's place has been given on.
func (w *reader) next(done *visit) *visit {
	c := w.crew
	c.mu.Lock()
	defer c.mu.Unlock()
	if done != nil && !done.stuck {
		c.end(w)
	}
	if w.replaced || len(c.todo) == 0 {
		return nil
	}
	w.visit, w.since = c.todo[0], time.Now()
	c.todo = c.todo[1:]
	c.readers[w] = true
	return w.visit
}

// end takes w's visit as ended. c is locked.
func (c *crew) end(w *reader) {
	delete(c.readers, w)
	if c.left--; c.left == 0 {
		close(c.finished)
	}
}

// publish lets keep note something in a visit, unless it was given up.
func (w *reader) publish(v *visit, keep func()) {
	w.crew.mu.Lock()
	defer w.crew.mu.Unlock()
	if !v.stuck {
		keep()
	}
}

// lookAfter gives on the places of those who are slow, and gives up those who
// are stuck.
func (c *crew) lookAfter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.readers {
		lasted := time.Since(w.since)
		if lasted < slow {
			continue
		}
		if !w.replaced && len(c.todo) > 0 {
			w.replaced = true
			c.hire()
		}
		if lasted < patience && !w.visit.brief && c.ctx.Err() == nil {
			continue
		}
		if c.ctx.Err() == nil && lasted < endless && w.computes() {
			continue
		}
		w.visit.stuck = true
		w.replaced = true
		c.end(w)
	}
}

// computes says whether the thread is running, not waiting.
func (w *reader) computes() bool {
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
