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
	ran      schedstat     // as it was when it had last run,
	seen     time.Time     // which was seen then; zero if it has not been looked after
	began    time.Duration // the processor time that it had had when it was first looked after
	replaced bool
}

const (
	// slow is when a thread's place is given on.
	slow = 20 * time.Millisecond
	// patience is when a thread is given up that has been asleep all the time: on
	// a busy machine it may sleep often, and get little done in a while.
	patience = 2 * time.Second
	// endless is when one is given up for what it computes (a smaps of many
	// gigabytes), in time that it has had a processor.
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
	w.seen = time.Time{}
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
		if !w.stuck() && c.ctx.Err() == nil {
			continue
		}
		w.visit.stuck = true
		w.replaced = true
		c.end(w)
	}
}

// stuck says whether the visit is to be given up. c is locked.
func (w *reader) stuck() bool {
	now, awake := w.schedstat()
	if w.seen.IsZero() {
		w.ran, w.seen, w.began = now, w.since, now.onCPU
	}
	if !awake && w.visit.brief {
		return true
	}
	if awake || now != w.ran {
		w.ran, w.seen = now, time.Now()
	}
	return time.Since(w.seen) >= patience || now.onCPU-w.began >= endless
}

// schedstat is how long a thread has had a processor, and how often: the first and
// the third number of /proc/…/schedstat, all 0 in kernels without CONFIG_SCHED_INFO.
type schedstat struct {
	onCPU time.Duration
	times uint64
}

// schedstat tells that of the thread, and whether it runs, or would if it could.
func (w *reader) schedstat() (now schedstat, awake bool) {
	tid := w.tid.Load()
	if tid == 0 {
		return now, true // not started yet
	}
	task := fmt.Sprintf("/proc/self/task/%d/", tid)
	text, err := os.ReadFile(task + "stat")
	if err != nil {
		return now, false
	}
	stat, err := parseStat(text)
	awake = err == nil && stat.state == 'R'
	if text, err = os.ReadFile(task + "schedstat"); err == nil {
		var waited uint64
		fmt.Sscan(string(text), &now.onCPU, &waited, &now.times)
	}
	return now, awake
}
