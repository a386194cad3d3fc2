package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CounterOptions say how many and what kind of workers a counter has.
// fixture/counter.c explains them.
type CounterOptions struct {
	FDs, Threads, Children int
	Pace                   time.Duration
	AllPace                bool // the first worker keeps the pace, too
	Quiet                  bool
	Lists                  bool // works with a directory, several opens of a path, an unlinked file
	Reopens                bool // opens the directory again at its end
}

func (o CounterOptions) args(dir, status string) []string {
	pace := "-p"
	if o.AllPace {
		pace = "-P"
	}
	args := []string{"-d", dir, "-s", status, "-n", fmt.Sprint(o.FDs), "-t", fmt.Sprint(o.Threads),
		"-c", fmt.Sprint(o.Children), pace, fmt.Sprint(o.Pace.Microseconds())}
	if o.Quiet {
		args = append(args, "-q")
	}
	switch {
	case o.Lists && o.Reopens:
		args = append(args, "-L")
	case o.Lists:
		args = append(args, "-l")
	}
	return args
}

// Counter is a running fixture/counter.c, seen through its status file. It
// lives on through a checkpoint: only PID changes.
type Counter struct {
	PID     int // of the process, or of the first one of its container, seen from here
	Workers []*Worker
	quiet   bool
	t       T
}

// Worker is one thread or process of a counter.
type Worker struct {
	Number int
	st     *counterStatus
}

// counterStatus is struct status of fixture/counter.c.
type counterStatus struct {
	ready, count, pause, failed, wrong, order, obeyed, last, pid, firstErrno atomic.Uint64
	firstFailed, firstWrong, doing                                           [64]byte
}

// The orders of fixture/counter.c.
const (
	forgetPause = 1 + iota
	checkAll
	end
)

// StartCounter starts a counter in dir and waits until it counts.
func StartCounter(t T, dir string, o CounterOptions) *Counter {
	t.Helper()
	status := filepath.Join(Dir(t), "status")
	c := counterAt(t, status, o)
	r := Begin(t, exec.Command(Build(t).Counter, o.args(dir, status)...))
	c.PID = r.PID
	t.Cleanup(func() { Kill(t, Tree(c.PID)...) })
	c.AwaitReady(r)
	return c
}

// counterAt maps the status file of a counter, before it starts.
func counterAt(t T, status string, o CounterOptions) *Counter {
	t.Helper()
	c := &Counter{quiet: o.Quiet, t: t}
	size := int(unsafe.Sizeof(counterStatus{}))
	n := 1 + o.Threads + o.Children
	m := mapFile(t, status, n*size)
	for i := range n {
		c.Workers = append(c.Workers, &Worker{i, (*counterStatus)(unsafe.Pointer(&m[i*size]))})
	}
	return c
}

// CountFDs returns how many descriptors a process of the counter has, without the
// files here.W, which its workers open and close all the time.
func (c *Counter) CountFDs(pid int) (n int) {
	c.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.t.Fatalf("%v", err)
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && !strings.HasPrefix(filepath.Base(to), "here.") {
			n++
		}
	}
	return n
}

// AwaitReady waits until every worker has begun to count.
func (c *Counter) AwaitReady(r *Running) {
	c.t.Helper()
	for _, w := range c.Workers {
		Await(c.t, patience, func() bool {
			select {
			case <-r.Ended():
				c.t.Fatalf("the counter ended: %s", r.err.String())
			default:
			}
			return w.st.ready.Load() != 0 && w.Count() > 0
		}, "worker %d counts (it is at: %s)", w.Number, w.Doing())
	}
}

// Count is how many rounds the worker has done.
func (w *Worker) Count() uint64 { return w.st.count.Load() }

// Doing is what the worker does now, in words.
func (w *Worker) Doing() string { return cString(bytes.Clone(w.st.doing[:])) }

// Pause is the longest time between two counts since ForgetPauses.
func (w *Worker) Pause() time.Duration { return time.Duration(w.st.pause.Load()) }

// Idle is how long the worker has not counted.
func (w *Worker) Idle() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(uint64(ts.Nano()) - w.st.last.Load())
}

// Pause is the longest of all workers' pauses.
func (c *Counter) Pause() (longest time.Duration) {
	for _, w := range c.Workers {
		longest = max(longest, w.Pause())
	}
	return longest
}

// Count is the sum of all workers' counts.
func (c *Counter) Count() (sum uint64) {
	for _, w := range c.Workers {
		sum += w.Count()
	}
	return sum
}

// CountsOn waits until every worker has counted n rounds more.
func (c *Counter) CountsOn(n uint64) {
	c.t.Helper()
	for _, w := range c.Workers {
		from := w.Count()
		Await(c.t, patience, func() bool { return w.Count() >= from+n },
			"worker %d counts on from %d (it is at: %s)", w.Number, from, w.Doing())
	}
}

// Stands waits until no worker has counted for d: all wait for the mount.
func (c *Counter) Stands(d time.Duration) {
	c.t.Helper()
	for _, w := range c.Workers {
		Await(c.t, patience, func() bool { return w.Idle() > d }, "worker %d stands still", w.Number)
	}
}

// ForgetPauses starts the measure of pauses anew.
func (c *Counter) ForgetPauses() { c.t.Helper(); c.order(forgetPause) }

// Failed is how many of the worker's calls have failed.
func (w *Worker) Failed() uint64 { return w.st.failed.Load() }

// Wrong is how many bytes the worker found that were not what they had to be.
func (w *Worker) Wrong() uint64 { return w.st.wrong.Load() }

// Reread makes every worker read all that it has written so far.
func (c *Counter) Reread() { c.t.Helper(); c.order(checkAll) }

// Check is Reread and Verdict.
func (c *Counter) Check() {
	c.t.Helper()
	c.Reread()
	c.Verdict()
}

// Verdict fails t for each call that ever failed, and each byte that was ever
// wrong, in any worker.
func (c *Counter) Verdict() {
	c.t.Helper()
	for _, w := range c.Workers {
		if n := w.Failed(); n > 0 {
			c.t.Errorf("counter %d, worker %d: %d calls failed, first %s: %v", c.PID, w.Number, n,
				cString(w.st.firstFailed[:]), unix.Errno(w.st.firstErrno.Load()))
		}
		if n := w.Wrong(); n > 0 {
			c.t.Errorf("counter %d, worker %d: %d bytes were wrong, first in: %s", c.PID, w.Number, n,
				cString(w.st.firstWrong[:]))
		}
	}
}

// End makes every worker end by itself, after which dir, the directory beneath
// the mount, must hold every byte written: that is checked, file by file.
// It returns how many bytes that were.
func (c *Counter) End(dir string) (bytes int64) {
	c.t.Helper()
	pids := Tree(c.PID)
	c.order(end)
	for _, pid := range pids {
		if pid != c.PID {
			Await(c.t, patience, func() bool { return !Alive(pid) }, "the end of %s", describe(pid))
		}
	}
	Await(c.t, patience, func() bool { return !Alive(c.PID) }, "the end of %s", describe(c.PID))
	c.Verdict()
	for _, w := range c.Workers {
		if c.quiet {
			break
		}
		bytes += checkRecords(c.t, filepath.Join(dir, fmt.Sprintf("log.%d", w.Number)), w.Count(),
			func(i uint64) uint64 { return i })
		bytes += checkRecords(c.t, filepath.Join(dir, fmt.Sprintf("private.%d", w.Number)), slots,
			func(i uint64) uint64 { return i })
		bytes += checkRecords(c.t, filepath.Join(dir, fmt.Sprintf("shared.%d", w.Number)), slots,
			func(i uint64) uint64 { return lastStored(i, w.Count()) })
	}
	return bytes
}

// order gives every worker an order and waits until it is carried out. The
// first worker is last: its end is that of the threads.
func (c *Counter) order(o uint64) {
	c.t.Helper()
	// The first comes last: what the others do shows in its pauses.
	for _, some := range [][]*Worker{c.Workers[1:], c.Workers[:1]} {
		before := make([]uint64, len(some))
		for i, w := range some {
			before[i] = w.st.obeyed.Load()
			w.st.order.Store(o)
		}
		for i, w := range some {
			Await(c.t, patience, func() bool { return w.st.obeyed.Load() != before[i] || !Alive(c.PID) },
				"worker %d obeys (it is at: %s)", w.Number, w.Doing())
		}
	}
}

// What fixture/counter.c puts into its files.
const (
	recordWords = 8
	recordSize  = recordWords * 8
	slots       = 2048
)

func record(n uint64) (r [recordSize]byte) {
	for i := range uint64(recordWords) {
		word := (n+1)*0x9E3779B97F4A7C15 + i*0xC2B2AE3D27D4EB4F
		binary.NativeEndian.PutUint64(r[i*8:], word)
	}
	return r
}

// lastStored is the record that the shared mapping's slot holds after count rounds.
func lastStored(slot, count uint64) uint64 {
	if slot >= count {
		return slot
	}
	return slot + (count-1-slot)/slots*slots
}

// checkRecords fails t unless the file consists of exactly n records, the i-th
// being record(number(i)), and returns its size. It gives the file a moment to
// become so: what a mapping left is written when its process has ended, and a
// daemon such as sshfs acknowledges what the server does not have yet.
func checkRecords(t T, path string, n uint64, number func(i uint64) uint64) int64 {
	t.Helper()
	var size int64
	var err error
	for deadline := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		if size, err = compareRecords(path, n, number); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Errorf("%v", err)
	}
	return size
}

// settling is how long what was written may take to be in the directory. There
// is no event to wait for: it is a server that writes it.
const settling = 3 * time.Second

// compareRecords does it once.
func compareRecords(path string, n uint64, number func(i uint64) uint64) (int64, error) {
	all, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if uint64(len(all)) != n*recordSize {
		return 0, fmt.Errorf("%s has %d bytes, want %d records of %d", path, len(all), n, recordSize)
	}
	for i := range n {
		want := record(number(i))
		if got := all[i*recordSize:][:recordSize]; !bytes.Equal(got, want[:]) {
			return 0, fmt.Errorf("%s: record %d is %x…, want %x…", path, i, got[:8], want[:8])
		}
	}
	return int64(len(all)), nil
}
