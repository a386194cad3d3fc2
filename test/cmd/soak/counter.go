package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spfs/test/rig"
)

// counts are what must not grow.
type counts struct{ fds, mappings, tasks int }

func count(t rig.T, c *rig.Counter) (n counts) {
	for _, pid := range rig.Tree(c.PID) {
		n.fds += c.CountFDs(pid)
		n.mappings += rig.CountMappings(t, pid)
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		n.tasks += len(tasks)
	}
	return n
}

// counter swaps a client back and forth between two mounts.
func counter(t rig.T) {
	began := time.Now()
	top := rig.Dir(t)
	data := rig.Mkdir(t, top, "data")
	a, b := rig.Mkdir(t, top, "a"), rig.Mkdir(t, top, "b")
	daemons := []*rig.Daemon{rig.Bindfs(t, data, a), rig.Loopback(t, data, b)}
	swap := rig.Build(t).Swap

	c := rig.StartCounter(t, a, rig.CounterOptions{FDs: 10, Threads: 1, Children: 1})
	c.CountsOn(100)
	before := count(t, c)
	fmt.Printf("a client of 2 processes, 3 workers, on bindfs at a; go-fuse's loopback at b\n")

	var stopped, longest time.Duration
	var leastFDs [2]int // of each daemon, while the client is on the other
	for i := range *rounds {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		var r struct {
			StoppedUS int64 `json:"stopped_us"`
			Processes int   `json:"processes"`
		}
		rig.Run(t, swap, "run", "--json", "--from", from, "--to", to, "--tree", fmt.Sprint(c.PID)).OK(t).JSON(t, &r)
		if r.Processes != 2 {
			t.Fatalf("swap %d: %d processes, want 2", i, r.Processes)
		}
		d := time.Duration(r.StoppedUS) * time.Microsecond
		stopped += d
		longest = max(longest, d)
		c.CountsOn(20)
		c.Verdict()
		if now := count(t, c); now != before {
			t.Fatalf("swap %d: the client has %+v, had %+v", i, now, before)
		}
		// The kernel releases files after the close, by a request of its own.
		left := daemons[i%2]
		if i < 2 {
			rig.Await(t, 10*time.Second, func() bool { return settled(left.PID, data) }, "the left daemon settles")
			leastFDs[i] = opened(left.PID, data)
		} else {
			rig.Await(t, 10*time.Second, func() bool { return opened(left.PID, data) <= leastFDs[i%2] },
				"after swap %d the daemon of %s has %d files open, as after its first", i, from, leastFDs[i%2])
		}
		if (i+1)%50 == 0 {
			fmt.Printf("%d swaps: stopped %v on average, %v at most; %d counts\n",
				i+1, (stopped / time.Duration(i+1)).Round(time.Microsecond), longest, c.Count())
		}
	}
	c.Check()
	n := c.Count()
	bytes := c.End(data)
	fmt.Printf("%d swaps in %v: %d counts, %d bytes checked in the end, no failed call, no lost byte, nothing leaked\n",
		*rounds, time.Since(began).Round(time.Second), n, bytes)
}

// opened counts what a daemon has open beneath its directory. (The pipes that
// go-fuse splices through are as many as it has had requests at once.)
func opened(pid int, dir string) (n int) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n
}

// settled tells whether that stays the same for a moment.
func settled(pid int, dir string) bool {
	n := opened(pid, dir)
	time.Sleep(100 * time.Millisecond)
	return opened(pid, dir) == n
}
