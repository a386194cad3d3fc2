//go:build soak

package test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"spfs/test/rig"
)

var kills = flag.Int("kills", 500, "kill a swapper so often, at random moments")

// TestSwapKilledAtRandomMoments kills the worker, the command, both of them, or
// their guard as well, at moments of chance, from the start of a run to after its end.
func TestSwapKilledAtRandomMoments(t *testing.T) {
	// Alone, as TestSwapKilledAtEveryPoint.
	program := rig.Build(t).Swap
	v := newVictims(t)
	began := time.Now()
	rig.Run(t, program, "run", "--from", v.old, "--to", v.new).OK(t)
	usual := time.Since(began)
	v.restart(t)
	v.remember()
	for n := range *kills {
		r := rig.Begin(t, exec.Command(program, "run", "--from", v.old, "--to", v.new))
		after := time.Duration(rand.Int64N(int64(usual + usual/5)))
		who := []string{"self", "parent", "both", "all"}[n%4]
		what := fmt.Sprintf("kill %d, of %s after %v of about %v", n, who, after, usual)
		select {
		case <-r.Ended():
		case <-time.After(after):
		}
		var workers, guards []int // if there are any yet, and any more
		for _, pid := range rig.Tree(r.PID)[1:] {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "sh\n" {
				guards = append(guards, pid)
			} else {
				workers = append(workers, pid)
			}
		}
		switch who {
		case "self":
			rig.Kill(t, workers...)
		case "parent":
			r.Kill()
		case "both":
			rig.Kill(t, append(workers, r.PID)...)
		case "all":
			rig.Kill(t, slices.Concat(guards, workers, []int{r.PID})...)
		}
		r.Wait(t)
		for _, w := range workers {
			rig.Await(t, 20*time.Second, func() bool { return !rig.Alive(w) }, "the end of the worker %d", w)
		}
		if lost := v.settled(program, what, who == "all"); lost {
			v.counter.Check()
			v = newVictims(t)
			v.remember()
		}
	}
	v.counter.Check()
	v.counter.End(v.data + "/counter")
}
