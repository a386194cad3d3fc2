package swap

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// run runs a plan, with its journal in a directory of the test's own.
func (m *twoMounts) run(t *testing.T, plan *Plan, o Options) *Result {
	t.Helper()
	inDirectory(t)
	result, err := plan.Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// TestRunGoesOnWithoutWhoIsKilled kills a process while it is stopped.
func TestRunGoesOnWithoutWhoIsKilled(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "x")
	// No children of this process: who waits for them would be told of their stops.
	parent := rig.StartPuppet(t)
	killed, other := parent.Spawn(0), parent.Spawn(0)
	killed.Open(m.old+"/file", unix.O_RDONLY)
	fd := other.Open(m.old+"/file", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	prepared := 0
	result := m.run(t, plan, Options{Progress: func(phase string) {
		if !strings.HasPrefix(phase, "preparing") {
			return
		}
		if prepared++; prepared == 1 {
			if err := unix.Kill(killed.PID, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}})
	if result.Processes != 1 {
		t.Errorf("%d processes were swapped, want 1", result.Processes)
	}
	m.left(t, plan)
	if got, want := other.Link(fd), m.old+"/file"; got != want {
		t.Errorf("its descriptor is of %s, want %s", got, want)
	}
}

// left fails t if somebody uses the old file system of a plan still.
func (m *twoMounts) left(t *testing.T, plan *Plan) {
	t.Helper()
	usage, err := Find(context.Background(), plan.From.Mount.Dev, Scope{})
	if err != nil {
		t.Fatal(err)
	}
	defer usage.Close()
	for _, p := range usage.Processes {
		t.Errorf("process %v uses the file system that was left", p)
	}
	for _, o := range usage.Obstacles {
		t.Error(o)
	}
}
