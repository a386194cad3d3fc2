package stubfs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHeldRequestGetsItsRealAnswer(t *testing.T) {
	m := mountStub(t)
	m.write("f", "content\n")
	p := m.startProgram("/bin/cat", m.path("f"))
	m.waitHeld("the reader", of(p.pid(), ""))
	m.open()
	p.expect("content")
	p.succeed()
	if h := m.Held(); len(h) != 0 {
		t.Errorf("still held: %v", h)
	}
}

func TestHeldSaysWhoWaitsForWhat(t *testing.T) {
	m := mountProxy(t)
	m.write("f", strings.Repeat("0", 4096))
	holder := m.start("hold", m.path("f")) // so that the kernel knows its node
	holder.expect("held")
	m.shutGate()
	before := time.Now()
	p := m.start("many", m.path("f"), "1")
	p.expect("started")
	h := m.waitHeld("the program", of(p.pid(), ""))[0]
	if h.Comm != "client" || h.Op == "" || h.Path == "" || h.Since.Before(before) || h.TID == p.pid() {
		t.Errorf("held: %+v", h)
	}
	m.open()
	p.succeed()
}

func TestKilledWhileWaiting(t *testing.T) {
	m := mountProxy(t)
	m.write("f", "before")
	m.shutGate()
	// A request that would be seen if it were executed late.
	p := m.start("hold", m.path("f"))
	m.waitHeld("the program", of(p.pid(), ""))
	p.kill()
	m.waitHeld("nobody", func(h []Held) bool { return len(h) == 0 })
	m.open()
}

func TestKilledRequestIsNotExecutedLate(t *testing.T) {
	m := mountProxy(t)
	// Past the LOOKUP, a mkdir waits in MKDIR itself: shut between the two.
	for i := range 20 {
		name := fmt.Sprint("d", i)
		p := m.startProgram("/bin/mkdir", m.path(name))
		m.shutGate()
		p.kill()
		_, err := os.Stat(filepath.Join(m.dir.Name(), name))
		existed := err == nil // it was quicker than the gate
		m.waitHeld("nobody", func(h []Held) bool { return len(h) == 0 })
		m.open()
		_, err = os.Stat(filepath.Join(m.dir.Name(), name))
		if !existed && err == nil {
			t.Fatalf("mkdir %d was executed after its process had died", i)
		}
	}
}

func TestKilledAfterAHarmlessSignal(t *testing.T) {
	m := mountStub(t)
	p := m.start("interrupted", m.path("f"))
	p.expect("started")
	m.waitHeld("the program", of(p.pid(), ""))
	// Its alarms have made the kernel send the only INTERRUPT there will be.
	for deadline := time.Now().Add(limit); len(m.gate.watched()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no INTERRUPT came")
		}
	}
	p.kill()
	m.waitHeld("nobody", func(h []Held) bool { return len(h) == 0 })
}

func TestNoProgramSeesEINTR(t *testing.T) {
	m := mountProxy(t)
	m.write("f", "0123456789abcdef")
	m.shutGate()
	p := m.start("interrupted", m.path("f"))
	p.expect("started")
	// The gate stays shut, so each of its requests waits, until a signal has.
	seen := map[string]bool{}
	for deadline := time.Now().Add(limit); !p.hasEnded(); {
		h := m.Held()
		if len(h) == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("neither a request nor an end; these waited: %v", seen)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		if h[0].Op != "RELEASE" { // for which nobody waits
			p.waitPending(unix.SIGALRM)
			seen[h[0].Op] = true
		}
		m.letFirst()
	}
	p.succeed()
	for _, op := range []string{"OPEN", "READ", "WRITE", "FSYNC", "FLUSH"} {
		if !seen[op] {
			t.Errorf("%s never waited; these did: %v", op, seen)
		}
	}
}

func TestDyingProcessWithOpenFilesCanExit(t *testing.T) {
	m := mountProxy(t)
	m.write("f", strings.Repeat("0", 8192))
	p := m.start("hold", m.path("f"))
	p.expect("held")
	m.shutGate()
	p.kill()

	// What it gave back takes effect when the gate opens, not before.
	m.open()
	f, err := os.OpenFile(filepath.Join(m.dir.Name(), "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	done := make(chan error, 1)
	go func() {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lock)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Error("a dead process keeps its locks")
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil || b[0] != 'x' {
		t.Errorf("its store into a mapping is lost: %q, %v", b, err)
	}
}

func TestManyDyingProcessesCanExit(t *testing.T) {
	m := mountProxy(t)
	for i := range 20 {
		name := fmt.Sprint("f", i)
		m.write(name, strings.Repeat("0", 8192))
		p := m.start("hold", m.path(name))
		p.expect("held")
		defer p.kill()
	}
	m.shutGate()
}

func TestMappingWaitsToo(t *testing.T) {
	m := mountProxy(t)
	m.write("f", strings.Repeat("\x00", 64*4096))
	p := m.start("touch", m.path("f"))
	p.expect("touching")
	count := func() uint64 {
		t.Helper()
		if _, err := p.in.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(p.line(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 20 {
		m.shutGate()
		a := count()
		time.Sleep(20 * time.Millisecond) // time for it to go on, if it can
		b := count()
		// Each of its four threads may have been between its store and
		// its counter.
		if b > a+4 {
			t.Fatalf("the mapping was touched %d times through a shut gate", b-a)
		}
		m.open()
		for c := b; c <= b+4; c = count() {
		}
	}
}

// The tests take OFD locks: a POSIX lock of this process would be lost when the
// target closes any descriptor of the same file.
func TestLockWaits(t *testing.T) {
	const shutFirst, shutMeanwhile, never = 0, 1, 2
	for name, when := range map[string]int{"held": shutFirst, "recalled": shutMeanwhile, "open": never} {
		t.Run(name, func(t *testing.T) {
			m := mountProxy(t)
			m.write("f", "x")
			f, err := os.OpenFile(filepath.Join(m.dir.Name(), "f"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			lock := unix.Flock_t{Type: unix.F_WRLCK}
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
			if when == shutFirst {
				m.shutGate()
			}
			p := m.start("lockwait", m.path("f"))
			switch when {
			case shutFirst:
				for range 3 { // GETATTR, LOOKUP, OPEN …
					m.waitHeld("the program", of(p.pid(), ""))
					m.step()
				}
				m.open()
				p.expect("waiting")
			case shutMeanwhile:
				p.expect("waiting")
				m.waitLocks(1)
				m.shutGate()
				m.waitHeld("the lock", of(p.pid(), "SETLKW"))
				m.open()
				m.waitLocks(1)
			case never:
				p.expect("waiting")
				m.waitLocks(1)
			}
			lock.Type = unix.F_UNLCK
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
			p.expect("locked")
			p.succeed()
		})
	}
}

func TestLockWaitIsInterruptible(t *testing.T) {
	m := mountProxy(t)
	m.write("f", "x")
	f, err := os.OpenFile(filepath.Join(m.dir.Name(), "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	p := m.start("lockwait", m.path("f"))
	p.expect("waiting")
	m.waitLocks(1)
	if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	p.expect("EINTR")
	p.succeed()

	p = m.start("lockwait", m.path("f"))
	p.expect("waiting")
	m.waitLocks(1)
	p.kill()
}

func TestShutGivesUpWithItsContext(t *testing.T) {
	m := mountProxy(t)
	m.write("f", "x\n")
	// A request that runs for ever, as on a directory that hangs.
	m.gate.mu.Lock()
	m.gate.active[1] = m.gate.epoch
	m.gate.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := m.Shut(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Shut: %v", err)
	}
	if !m.IsOpen() {
		t.Error("the gate is not open again")
	}
	m.cat("f", "x")
	m.gate.finish(lookup(1), false)
	m.shutGate()
}

func TestOpenOntoWhatIsNoDirectoryLeavesAllAsItWas(t *testing.T) {
	m := mountProxy(t)
	m.write("f", "x\n")
	f, err := os.Open(filepath.Join(m.dir.Name(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Open(context.Background(), f); err == nil {
		t.Fatal("a file was taken for a directory")
	}
	m.cat("f", "x")
}

func TestAThousandFlipsUnderLoad(t *testing.T) {
	m := mountProxy(t)
	var load []*program
	for i := range 4 {
		p := m.start("load", m.point, fmt.Sprint(i))
		p.expect("running")
		load = append(load, p)
	}
	m.flip(10) // whatever is made once is made now
	before := openFDs(t)
	start := time.Now()
	m.flip(1000)
	t.Logf("1000 flips in %v", time.Since(start))
	if after := openFDs(t); after > before+16 {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	for _, p := range load {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if n, err := strconv.Atoi(p.line()); err != nil || n < 50 {
			t.Errorf("program went round %d times (%v) in 1000 flips: no load", n, err)
		}
		p.succeed()
	}
}

func (m *mounted) flip(n int) {
	m.t.Helper()
	for range n {
		m.shutGate()
		if rand.IntN(4) == 0 {
			time.Sleep(time.Millisecond) // let the load run into it
		}
		m.open()
		if rand.IntN(4) == 0 {
			time.Sleep(time.Millisecond) // let it run
		}
	}
}

func TestTenThousandHeldRequests(t *testing.T) {
	m := mountStub(t)
	m.write("f", "x")
	const processes, threads = 10, 1000
	debug.FreeOSMemory() // what other tests have left is not counted
	before := rss(t)
	var all []*program
	for range processes {
		p := m.start("many", m.path("f"), fmt.Sprint(threads))
		p.expect("started")
		all = append(all, p)
	}
	m.waitHeld("10,000 requests", func(h []Held) bool { return len(h) == processes*threads })
	if used := rss(t) - before; used > 200<<20 {
		t.Errorf("holding %d requests takes %d MB", processes*threads, used>>20)
	} else {
		t.Logf("holding %d requests takes %.1f MB", processes*threads, float64(used)/(1<<20))
	}
	start := time.Now()
	m.open()
	for _, p := range all {
		p.succeed()
	}
	t.Logf("answered after %v", time.Since(start))
}

// step lets the requests that wait now run, and shuts the gate again.
func (m *mounted) step() {
	m.t.Helper()
	m.open()
	m.shutGate()
}

// letFirst lets the request run that waits first, while the gate stays shut.
func (m *mounted) letFirst() {
	g := m.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.queue.first
	g.take(h)
	g.active[h.req.Unique()] = g.epoch
	go g.run(h, nil)
}

// waitLocks waits until n lock requests run.
func (m *mounted) waitLocks(n int) {
	m.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		m.gate.mu.Lock()
		got := len(m.gate.locks)
		m.gate.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%d requests wait for a lock, want %d", got, n)
		}
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// rss is the resident memory of this process, in bytes.
func rss(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	kb, err := strconv.ParseInt(strings.TrimSuffix(statusField(b, "VmRSS"), " kB"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
