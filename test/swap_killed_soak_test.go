//go:build soak

package test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"spfs/test/rig"
)

var kills = flag.Int("kills", 500, "kill a swapper so often, at random moments")

// TestSwapKilledAtRandomMoments kills the worker, the command or both of them
// at moments of chance, from the start of a run to after its end.
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
		who := []string{"self", "parent", "both"}[n%3]
		what := fmt.Sprintf("kill %d, of %s after %v of about %v", n, who, after, usual)
		select {
		case <-r.Ended():
		case <-time.After(after):
		}
		tree := rig.Tree(r.PID) // the command, then its worker if there is one yet
		workers := tree[1:]
		switch who {
		case "self":
			rig.Kill(t, workers...)
		case "parent":
			r.Kill()
		case "both":
			rig.Kill(t, append(workers, r.PID)...)
		}
		r.Wait(t)
		for _, w := range workers {
			rig.Await(t, 20*time.Second, func() bool { return !rig.Alive(w) }, "the end of the worker %d", w)
		}
		if lost := v.settled(program, what, who == "both"); lost {
			v.counter.Check()
			v = newVictims(t)
			v.remember()
		}
	}
	v.counter.Check()
	v.counter.End(v.data + "/counter")
}
