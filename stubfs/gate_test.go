package stubfs

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// request makes one as the kernel would send it.
func request(op fusedev.Opcode, unique, node uint64, tid int, arg ...uint64) fusedev.Request {
	r := make([]byte, 40, 40+8*len(arg))
	binary.NativeEndian.PutUint32(r[4:], uint32(op))
	binary.NativeEndian.PutUint64(r[8:], unique)
	binary.NativeEndian.PutUint64(r[16:], node)
	binary.NativeEndian.PutUint32(r[32:], uint32(tid))
	for _, a := range arg {
		r = binary.NativeEndian.AppendUint64(r, a)
	}
	binary.NativeEndian.PutUint32(r, uint32(len(r)))
	return r
}

func lookup(unique uint64) fusedev.Request { return request(fusedev.OpLookup, unique, 1, 100) }

// ran is a request that a gate under test has let go.
type ran struct {
	h *held
	w *lockWait
}

// testGate is a gate whose requests arrive on a channel when they run.
func testGate(t *testing.T) (*gate, chan ran) {
	t.Helper()
	g := newGate()
	c := make(chan ran, 10_000)
	g.run = func(h *held, w *lockWait) { c <- ran{h, w} }
	return g, c
}

// uniques drains n requests from c, ends each, and sorts their numbers by
// arrival: their goroutines may run in any order.
func uniques(g *gate, c chan ran, n int) []uint64 {
	var all []uint64
	for range n {
		r := <-c
		all = append(all, r.h.req.Unique())
		g.finish(r.h.req, r.h.detached)
	}
	slices.Sort(all)
	return all
}

func TestShutGateHoldsInOrderAndLetsAllGo(t *testing.T) {
	g, c := testGate(t)
	var want []uint64
	for i := uint64(2); i <= 2000; i += 2 {
		if runs, h := g.admit(lookup(i)); runs || h == nil {
			t.Fatalf("request %d runs through a shut gate", i)
		}
		want = append(want, i)
	}
	var order []uint64
	for _, h := range g.waiting() {
		order = append(order, h.req.Unique())
	}
	if !slices.Equal(order, want) {
		t.Fatalf("%d requests wait, not in the order of their arrival", len(order))
	}
	if len(c) != 0 {
		t.Fatalf("%d requests ran", len(c))
	}
	g.reopen()
	if got := uniques(g, c, len(want)); !slices.Equal(got, want) {
		t.Errorf("%d of %d requests ran, or others", len(got), len(want))
	}
	if runs, _ := g.admit(lookup(4000)); !runs {
		t.Error("an open gate holds a request")
	}
}

func TestNewRequestsDoNotOvertakeOldOnes(t *testing.T) {
	g, c := testGate(t)
	for i := uint64(1); i <= maxRunning+5; i++ {
		g.admit(lookup(2 * i))
	}
	g.reopen()
	first := make([]ran, maxRunning)
	for i := range first {
		first[i] = <-c
		if u := first[i].h.req.Unique(); u > 2*maxRunning {
			t.Fatalf("request %d ran before its turn", u)
		}
	}
	if runs, h := g.admit(lookup(9998)); runs || h == nil {
		t.Fatal("a new request ran before older ones")
	}
	g.finish(first[0].h.req, false)
	if r := <-c; r.h.req.Unique() != 2*(maxRunning+1) {
		t.Errorf("next was %d, want %d", r.h.req.Unique(), 2*(maxRunning+1))
	}
}

func TestDroppedRequestNeverRuns(t *testing.T) {
	g, c := testGate(t)
	_, dead := g.admit(lookup(2))
	g.admit(lookup(4))
	if h, known := g.interrupt(2); h != dead || !known {
		t.Fatalf("interrupt found %v, %v", h, known)
	}
	if errno, ok := g.drop(dead); !ok || errno != unix.EINTR {
		t.Fatalf("drop: %v, %v", errno, ok)
	}
	if _, ok := g.drop(dead); ok {
		t.Error("dropped twice")
	}
	if _, known := g.interrupt(2); known {
		t.Error("a dropped request is still known")
	}
	g.reopen()
	if got := uniques(g, c, 1); got[0] != 4 {
		t.Errorf("request %d ran", got[0])
	}
	if len(c) != 0 {
		t.Error("the dropped request ran")
	}
}

func TestWhatADyingProcessGivesBackRunsBeforeWhatFollows(t *testing.T) {
	const unlock = 2
	for name, req := range map[string]fusedev.Request{
		"FLUSH":         request(fusedev.OpFlush, 2, 7, 100),
		"SETLK unlock":  request(fusedev.OpSetlk, 2, 7, 100, 0, 0, 0, 0, unlock),
		"SETLKW unlock": request(fusedev.OpSetlkw, 2, 7, 100, 0, 0, 0, 0, unlock),
	} {
		t.Run(name, func(t *testing.T) {
			g, c := testGate(t)
			_, h := g.admit(req)
			g.admit(request(fusedev.OpRelease, 4, 7, 0))
			if errno, ok := g.drop(h); !ok || errno != 0 {
				t.Fatalf("drop: %v, %v", errno, ok)
			}
			if n := len(g.waiting()); n != 2 {
				t.Fatalf("%d requests wait, want 2", n)
			}
			g.reopen()
			r := <-c
			if r.h != h || r.w != nil || !r.h.detached {
				t.Fatalf("%s ran first", r.h.req.Opcode())
			}
			if len(c) != 0 {
				t.Fatal("RELEASE ran beside it")
			}
			g.finish(r.h.req, true)
			if r := <-c; r.h.req.Opcode() != fusedev.OpRelease {
				t.Errorf("then %s", r.h.req.Opcode())
			}
		})
	}
}

func TestClosingWaitsForWhatRunsOnly(t *testing.T) {
	g, _ := testGate(t)
	g.reopen()
	g.admit(lookup(2))
	done := g.close(closing)
	writeBack := request(fusedev.OpWrite, 4, 9, 0, 0, 0, 1<<32|4096) // size, FUSE_WRITE_CACHE
	if runs, _ := g.admit(writeBack); !runs {
		t.Fatal("write-back is held while the page cache is dropped")
	}
	if runs, _ := g.admit(lookup(6)); runs {
		t.Fatal("a closing gate lets a request in")
	}
	select {
	case <-done:
		t.Fatal("closed over a request that runs")
	default:
	}
	g.finish(lookup(2), false)
	<-done // write-back that came later does not count
	if g.untouched() {
		g.finish(writeBack, false)
	}
	if g.untouched() {
		t.Error("a write leaves no trace in the list of cached nodes")
	}
	if nodes := g.takeTouched(); !slices.Equal(nodes, []uint64{9}) {
		t.Errorf("touched %v, want node 9", nodes)
	}
}

func TestPagesOfHeldRequestsAreLeftOut(t *testing.T) {
	g, _ := testGate(t)
	g.reopen()
	<-g.close(closing)
	g.admit(request(fusedev.OpRead, 2, 9, 100, 0, 8192, 4096))
	g.admit(request(fusedev.OpRead, 4, 8, 100, 0, 0, 4096)) // another node
	if got, want := g.startDrop(9), []span{{0, 8192}, {12288, 0}}; !slices.Equal(got, want) {
		t.Errorf("dropping %v, want %v", got, want)
	}
	if runs, _ := g.admit(request(fusedev.OpRead, 6, 9, 101, 0, 0, 4096)); !runs {
		t.Error("a page that is being dropped is held locked")
	}
	g.endDrop(9)
	if runs, _ := g.admit(request(fusedev.OpRead, 8, 9, 102, 0, 0, 4096)); runs {
		t.Error("READ passes a closing gate")
	}
}

func TestWithout(t *testing.T) {
	for _, c := range []struct{ parts, want []span }{
		{nil, []span{{0, 0}}},
		{[]span{{0, 10}}, []span{{4096, 0}}},
		{[]span{{5000, 10}}, []span{{0, 4096}, {8192, 0}}},
		{[]span{{20000, 1}, {4096, 8192}, {4096, 100}}, []span{{0, 4096}, {12288, 4096}, {20480, 0}}},
	} {
		if got := without(c.parts); !slices.Equal(got, c.want) {
			t.Errorf("without(%v) = %v, want %v", c.parts, got, c.want)
		}
	}
}

func lockRequest(unique uint64) fusedev.Request {
	const write = 1
	return request(fusedev.OpSetlkw, unique, 7, 100, 0, 0, 0, 0, write)
}

func TestLockWaitGoesBackToItsPlaceWhenTheGateShuts(t *testing.T) {
	g, c := testGate(t)
	g.reopen()
	g.admit(lockRequest(2))
	r := <-c
	done := g.close(closing)
	<-r.w.cancel
	g.admit(lookup(4)) // held behind it
	if g.finishLock(r.h, true) {
		t.Fatal("the process gets the EINTR of the gate")
	}
	<-done
	if w := g.waiting(); len(w) != 2 || w[0].req.Unique() != 2 {
		t.Fatalf("%d wait, or in another order", len(w))
	}
	g.reopen()
	seen := map[uint64]bool{}
	for range 2 {
		seen[(<-c).h.req.Unique()] = true
	}
	if !seen[2] || !seen[4] {
		t.Errorf("ran: %v", seen)
	}
}

func TestSignalEndsALockWait(t *testing.T) {
	g, c := testGate(t)
	g.reopen()
	g.admit(lockRequest(2))
	r := <-c
	if _, known := g.interrupt(2); !known {
		t.Fatal("not known")
	}
	g.interrupt(2) // a second one changes nothing
	<-r.w.cancel
	<-func() chan struct{} { g.close(closing); return r.w.cancel }() // nor does the gate
	if !g.finishLock(r.h, true) {
		t.Error("the process never gets its EINTR")
	}
}

func TestSignalToAHeldLockRequestCountsOnceItRuns(t *testing.T) {
	g, c := testGate(t)
	_, h := g.admit(lockRequest(2))
	if got, _ := g.interrupt(2); got != h {
		t.Fatal("not held")
	}
	if w := g.watched(); len(w) != 1 || w[0] != h {
		t.Fatalf("watched: %v", w)
	}
	g.reopen()
	r := <-c
	<-r.w.cancel
	if !g.finishLock(r.h, true) {
		t.Error("the process never gets its EINTR")
	}
}

func TestEndDropsAllAndGivesUpLocks(t *testing.T) {
	g, c := testGate(t)
	g.reopen()
	g.admit(lockRequest(2))
	r := <-c
	g.close(closing)
	g.admit(lookup(4))
	done := g.end()
	<-r.w.cancel
	if !g.finishLock(r.h, true) {
		t.Error("a lock request waits for a connection that is gone")
	}
	<-done
	if n := len(g.waiting()); n != 0 {
		t.Errorf("%d requests wait", n)
	}
	g.reopen()
	if runs, h := g.admit(lookup(6)); runs || h != nil {
		t.Error("a request is taken after the end")
	}
}
