package stubfs

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// phase is what the gate does with a request that comes in.
type phase int

const (
	shut    phase = iota // it is held
	closing              // it is held, but for what dropping the page cache needs
	open                 // it runs
	ended                // the connection is gone
)

// maxRunning is how many requests run at once; the others wait their turn.
// Each takes a thread while the directory answers, and a directory that has
// stopped to answer must not take the daemon's last one. Lock requests that
// wait for the lock are not among them: whoever holds it must get through.
const maxRunning = 512

// held is a request that waits in the gate.
type held struct {
	prev, next *held // in the queue, in the order of arrival

	seq      uint64 // of its arrival
	req      fusedev.Request
	since    time.Time
	detached bool // answered already, to be executed all the same

	// A signal came while it waited: it is watched for its process's death,
	// and a lock request that still can't be had is given up once it runs.
	interrupted bool
}

// lockWait is a SETLKW that runs: it may wait for another process for ever.
type lockWait struct {
	seq    uint64
	since  time.Time
	cancel chan struct{} // closed to make it give up

	interrupted bool // by a signal: the process gets the EINTR
	recalled    bool // by the gate: it goes back into the queue
}

// gate decides when a request runs, and knows those that wait and those that
// run. It executes and answers nothing itself: run, set before use, does, on
// a goroutine of its own for each request that has waited.
type gate struct {
	run func(*held, *lockWait)

	mu     sync.Mutex
	phase  phase
	seq    uint64
	queue  queue
	byID   map[uint64]*held     // the queue's, but for the detached ones
	active map[uint64]uint64    // requests that run, and the epoch they began in
	locks  map[uint64]*lockWait // SETLKW that run, likewise
	serial bool                 // a detached request runs: nothing overtakes it

	epoch   uint64        // counts how often the gate began to close
	old     int           // requests still running from before the epoch
	drained chan struct{} // closed when old is 0; nil if nobody waits

	touched map[uint64]struct{} // nodes that may have pages in the cache
	passing map[uint64]struct{} // nodes whose pages are being dropped
}

func newGate() *gate {
	return &gate{
		byID:    map[uint64]*held{},
		active:  map[uint64]uint64{},
		locks:   map[uint64]*lockWait{},
		touched: map[uint64]struct{}{},
		passing: map[uint64]struct{}{},
	}
}

// admit takes a request that has arrived. If it returns true the caller
// executes it now, answers it, and calls finish. If not, the gate has kept
// what it needs, and returned the request as it waits (nil if it runs
// elsewhere or the connection has ended).
func (g *gate) admit(req fusedev.Request) (bool, *held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.phase == ended {
		return false, nil
	}
	if req.Opcode() != fusedev.OpSetlkw && g.passes(req) {
		g.active[req.Unique()] = g.epoch
		return true, nil
	}
	g.seq++
	h := &held{seq: g.seq, req: append(fusedev.Request(nil), req...), since: time.Now()}
	g.queue.push(h)
	g.byID[req.Unique()] = h
	g.pump()
	if _, waits := g.byID[req.Unique()]; !waits {
		return false, nil
	}
	return false, h
}

// passes says whether a new request may run at once.
func (g *gate) passes(req fusedev.Request) bool {
	switch g.phase {
	case open:
		return g.queue.first == nil && !g.serial && len(g.active) < maxRunning
	case closing:
		if req.WriteBack() {
			return true
		}
		_, passing := g.passing[req.NodeID()]
		return passing && isData(req)
	}
	return false
}

// pump lets requests out of the queue for as long as they may run.
func (g *gate) pump() {
	for g.phase == open && !g.serial && len(g.active) < maxRunning && g.queue.first != nil {
		h := g.queue.first
		g.take(h)
		var w *lockWait
		switch {
		case h.req.Opcode() == fusedev.OpSetlkw && !h.detached:
			w = &lockWait{seq: h.seq, since: h.since, cancel: make(chan struct{})}
			if h.interrupted {
				w.interrupted = true
				close(w.cancel)
			}
			g.locks[h.req.Unique()] = w
		default:
			// What comes after a FLUSH that was answered early may be
			// the RELEASE of the same file.
			g.serial = h.detached
			g.active[h.req.Unique()] = g.epoch
		}
		go g.run(h, w)
	}
}

// take removes a request from the queue.
func (g *gate) take(h *held) {
	g.queue.remove(h)
	if !h.detached {
		delete(g.byID, h.req.Unique())
	}
}

// finish says that a request has been executed and answered.
func (g *gate) finish(req fusedev.Request, detached bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if isData(req) {
		g.touched[req.NodeID()] = struct{}{}
	}
	began := g.active[req.Unique()]
	delete(g.active, req.Unique())
	if detached {
		g.serial = false
	}
	g.finished(began)
	g.pump()
}

func (g *gate) finished(began uint64) {
	if began == g.epoch {
		return
	}
	g.old--
	if g.old == 0 && g.drained != nil {
		close(g.drained)
		g.drained = nil
	}
}

// finishLock says that a SETLKW has ended, with EINTR or not. If it returns
// false the request has gone back into the queue and must not be answered.
func (g *gate) finishLock(h *held, eintr bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := h.req.Unique()
	w := g.locks[id]
	delete(g.locks, id)
	// A recalled one counts as old: recall is what begins an epoch.
	if w.recalled {
		g.finished(g.epoch - 1)
	}
	if !eintr || w.interrupted || !w.recalled || g.phase == ended {
		return true
	}
	back := &held{seq: w.seq, req: h.req, since: w.since}
	g.queue.insert(back)
	g.byID[id] = back
	g.pump()
	return false
}

// interrupt takes note of a signal to whoever waits for a request. It says
// what the request does: it waits (and is returned), it runs, or it is not
// known, because another reader has it in hands or because it is answered.
func (g *gate) interrupt(id uint64) (h *held, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if h := g.byID[id]; h != nil {
		h.interrupted = true
		return h, true
	}
	if w := g.locks[id]; w != nil {
		if !w.interrupted {
			w.interrupted = true
			if !w.recalled {
				close(w.cancel)
			}
		}
		return nil, true
	}
	_, runs := g.active[id]
	return nil, runs
}

// drop takes a request out for good because its process is dying, or keeps
// it to be executed but says that it may be answered. It returns the errno of
// the answer, and false if the request does not wait any more.
func (g *gate) drop(h *held) (unix.Errno, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byID[h.req.Unique()] != h {
		return 0, false
	}
	if givesBack(h.req) {
		delete(g.byID, h.req.Unique())
		h.detached = true
		return 0, true
	}
	g.take(h)
	return unix.EINTR, true
}

// waiting lists the requests in the queue, in order.
func (g *gate) waiting() []*held {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []*held
	for h := g.queue.first; h != nil; h = h.next {
		all = append(all, h)
	}
	return all
}

// watched lists the requests that have met a signal while they waited.
func (g *gate) watched() []*held {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []*held
	for _, h := range g.byID {
		if h.interrupted {
			all = append(all, h)
		}
	}
	return all
}

// close begins to shut the gate, or goes on from closing to shut: no more
// begins, locks that are waited for are recalled. The channel is closed when
// what ran before has finished.
func (g *gate) close(to phase) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	done := make(chan struct{})
	if g.phase == ended {
		close(done)
		return done
	}
	g.phase = to
	g.epoch++
	g.old = len(g.active) + len(g.locks)
	for _, w := range g.locks {
		if !w.recalled {
			w.recalled = true
			if !w.interrupted {
				close(w.cancel)
			}
		}
	}
	if g.old == 0 {
		close(done)
	} else {
		g.drained = done
	}
	return done
}

// reopen lets everything run again, what has waited first.
func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.phase == ended {
		return
	}
	g.phase = open
	g.drained = nil
	g.pump()
}

// end drops everything: the connection is gone and nobody waits any more. The
// channel is closed when nothing runs any more.
func (g *gate) end() <-chan struct{} {
	done := g.close(ended)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = queue{}
	clear(g.byID)
	return done
}

// isOpen says whether requests run.
func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.phase == open
}

// isData says whether a request reads or writes a file's data, and so fills
// the page cache and holds pages locked while it is not answered.
func isData(req fusedev.Request) bool {
	op := req.Opcode()
	return op == fusedev.OpRead || op == fusedev.OpWrite
}

// givesBack says whether a request only gives back what its process had, and
// so has to be executed even if that process is dying.
func givesBack(req fusedev.Request) bool {
	return req.Opcode() == fusedev.OpFlush || req.Unlock()
}
