package swap

import (
	"context"
	"os"
	"path/filepath"
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

// TestRecoverOfARunForStragglers has a swapper be killed in it.
func TestRecoverOfARunForStragglers(t *testing.T) {
	inDirectory(t)
	rec := someRecord()
	rec.Processes, rec.Mounts, rec.Made = nil, nil, nil
	var all [3]*journal
	var verdicts [3]*verdict
	for i := range all {
		j, err := newJournal()
		if err != nil {
			t.Fatal(err)
		}
		of := *rec
		if i == 2 {
			of.PID++ // another swapper
		}
		if err := j.write(&of); err != nil {
			t.Fatal(err)
		}
		v, err := newVerdict(j.path)
		if err != nil {
			t.Fatal(err)
		}
		defer v.close()
		v.goForward()
		all[i], verdicts[i] = j, v
	}
	for _, j := range all[1:] { // nobody keeps them
		j.close()
	}
	found, err := Recover(context.Background(), Recovery{Kept: []*os.File{all[0].dir, verdicts[0].file}})
	if err != nil || len(found) != 2 {
		t.Errorf("recovered were %+v (%v), want both runs of process %d", found, err, rec.PID)
	}
	left, _ := os.ReadDir(journalDirectory)
	if len(left) != 1 || left[0].Name() != filepath.Base(all[2].path) {
		t.Errorf("journals left: %v, want that of the other swapper", left)
	}
}

// TestRunTakesStragglersAlong has processes come to the old file system after all
// who used it have been stopped.
func TestRunTakesStragglersAlong(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "dir/file", "0123456789")
	parent := rig.StartPuppet(t)
	user, opens, maps, stays := parent.Spawn(0), parent.Spawn(0), parent.Spawn(0), parent.Spawn(0)
	user.Open(m.old+"/dir/file", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	var fd int
	var at uint64
	result := m.run(t, plan, Options{Keep: func([]*os.File) error {
		fd = opens.Open(m.old+"/dir/file", unix.O_RDWR)
		opens.Seek(fd, 5, unix.SEEK_SET)
		mapped := maps.Open(m.old+"/dir/file", unix.O_RDONLY)
		at = maps.Mmap(mapped, pageSize, unix.PROT_READ, unix.MAP_SHARED)
		maps.Close(mapped)
		stays.Chdir(m.old + "/dir")
		return nil
	}})
	m.left(t, plan)
	want := Result{Processes: 4, Threads: 4, FDs: 2, Mappings: 1, Cwds: 1, Mounts: 1, StoppedUS: result.StoppedUS, TotalUS: result.TotalUS}
	if *result != want {
		t.Errorf("swapped were %+v, want %+v", *result, want)
	}
	if got, want := opens.Link(fd), m.old+"/dir/file"; got != want {
		t.Errorf("a descriptor is of %s, want %s", got, want)
	}
	if got := opens.Read(fd, 10); got != "56789" {
		t.Errorf("it reads %q", got)
	}
	if got := string(maps.Load(at, 4)); got != "0123" {
		t.Errorf("a mapping has %q", got)
	}
	if got, want := stays.Getcwd(), m.old+"/dir"; got != want {
		t.Errorf("a working directory is %s, want %s", got, want)
	}
}
