package stubfs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"spfs/internal/fusedev"
)

// maxRounds bounds how often the page cache is dropped again because someone
// filled it meanwhile. Each round takes the pages away from every thread that
// touches them, and leaves those threads waiting for their next page; so two
// or three do, whatever they do.
const maxRounds = 64

// Shut shuts the gate. It returns when every request that ran is answered and
// the kernel has forgotten what it had cached, so that whoever touches the
// mount waits. If ctx ends first, the gate is open again and Shut fails.
func (f *FS) Shut(ctx context.Context) error {
	f.modeMu.Lock()
	defer f.modeMu.Unlock()
	return f.shut(ctx)
}

// shut goes three steps, for dropping pages needs the gate: dirty ones are
// written out by a WRITE, and one that a READ is filling is waited for.
//
//  1. Open: drop what can be dropped while nobody waits.
//  2. Closing: hold everything but write-back; wait for what runs; drop the
//     pages again. Pages of a request that is held are locked and have no
//     content that counts: they are left out. Requests for pages of a node
//     that come in while they are being dropped pass, or dropping would wait
//     for them for ever; so the node's turn comes once more.
//  3. Shut: no page is left that could become dirty, so no write-back comes.
func (f *FS) shut(ctx context.Context) error {
	if !f.gate.isOpen() {
		return nil
	}
	if err := f.await(ctx, f.inBackground(f.dropPages)); err != nil {
		return err
	}
	if err := f.await(ctx, f.gate.close(closing)); err != nil {
		return err
	}
	for range maxRounds {
		if err := f.await(ctx, f.inBackground(f.dropPages)); err != nil {
			return err
		}
		if err := f.await(ctx, f.gate.close(shut)); err != nil {
			return err
		}
		if f.gate.untouched() {
			break
		}
		f.gate.close(closing)
	}
	f.gate.close(shut)
	return f.await(ctx, f.inBackground(f.dropAttrs))
}

// await waits for done, and opens the gate again if ctx ends first.
func (f *FS) await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-f.done:
		return fmt.Errorf("the mount is gone")
	case <-ctx.Done():
		f.gate.reopen()
		return fmt.Errorf("waiting for requests that the directory does not answer: %w", context.Cause(ctx))
	}
}

// inBackground runs do on a goroutine of its own, since a notification may
// block in the kernel for as long as a request goes unanswered.
func (f *FS) inBackground(do func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	return done
}

// parallel is how many nodes are dropped at a time: one that waits for a slow
// directory must not hold up all others.
const parallel = 8

// dropPages drops the pages of all nodes that had any, once.
func (f *FS) dropPages() {
	var all sync.WaitGroup
	room := make(chan struct{}, parallel)
	for _, node := range f.gate.takeTouched() {
		room <- struct{}{}
		all.Add(1)
		go func() {
			defer all.Done()
			stuck := time.AfterFunc(releaseAfter, func() { f.gate.release(node) })
			for _, s := range f.gate.startDrop(node) {
				f.report(f.conn.InvalidateData(node, s.offset, s.size))
			}
			stuck.Stop()
			f.gate.endDrop(node)
			<-room
		}()
	}
	all.Wait()
}

// releaseAfter is when a node's pages that are still not dropped are taken to
// be locked by a request that is held: folios may be larger than what the
// request for a part of them says.
const releaseAfter = 500 * time.Millisecond

// release lets the requests for a node's pages run that wait, while its pages
// are being dropped.
func (g *gate) release(node uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.passing[node]; !ok || g.phase != closing {
		return
	}
	for h := g.queue.first; h != nil; {
		next := h.next
		if h.req.NodeID() == node && isData(h.req) {
			g.take(h)
			g.active[h.req.Unique()] = g.epoch
			go g.run(h, nil)
		}
		h = next
	}
}

// dropAttrs makes the kernel ask for all attributes again.
func (f *FS) dropAttrs() {
	t := f.target()
	if t == nil {
		return
	}
	for _, node := range t.Nodes() {
		f.report(f.conn.InvalidateAttr(node))
	}
}

// span is a part of a file, in bytes; a size of 0 reaches to its end.
type span struct{ offset, size int64 }

// takeTouched lists the nodes that may have pages in the cache, and forgets
// them.
func (g *gate) takeTouched() []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	nodes := make([]uint64, 0, len(g.touched))
	for n := range g.touched {
		nodes = append(nodes, n)
	}
	clear(g.touched)
	return nodes
}

// untouched says whether no node got pages since they were last dropped.
func (g *gate) untouched() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.touched) == 0
}

// startDrop lets requests for a node's pages pass until endDrop, and returns
// the parts of the file that no request before them holds locked.
func (g *gate) startDrop(node uint64) []span {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passing[node] = struct{}{}
	var locked []span
	if g.phase != open { // else what waits runs by itself
		for h := g.queue.first; h != nil; h = h.next {
			if h.req.NodeID() == node && isData(h.req) {
				offset, size := h.req.Range()
				locked = append(locked, span{int64(offset), int64(size)})
			}
		}
	}
	return without(locked)
}

func (g *gate) endDrop(node uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.passing, node)
}

// pageSize is the granularity of locks in the page cache.
const pageSize = fusedev.PageSize

// without returns what of a file lies outside of the given parts, in whole
// pages.
func without(parts []span) []span {
	slices.SortFunc(parts, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	var rest []span
	at := int64(0)
	for _, p := range parts {
		from := p.offset &^ (pageSize - 1)
		to := (p.offset + p.size + pageSize - 1) &^ (pageSize - 1)
		if from > at {
			rest = append(rest, span{at, from - at})
		}
		at = max(at, to)
	}
	return append(rest, span{at, 0})
}
