package swap

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// TestPlanOfABusyProcess plans for one whose descriptor names another file at every
// moment, of another size: no moment of it is in the way.
func TestPlanOfABusyProcess(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "short", "x")
	m.write(t, "longer", "xyz")
	sh := exec.Command("sh", "-c", "exec 5<short; echo; while :; do exec 5<longer; exec 5<short; done")
	sh.Dir = m.old
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		sh.Process.Kill()
		sh.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		plan := m.plan(t, Scope{})
		if err := plan.Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStill tells what is in the way from what was for a moment.
func TestStill(t *testing.T) {
	fd := Obstacle{PID: 1, Process: "1 (x)", Resource: "fd 3 → /a", Reason: "4 bytes of events are unread"}
	more := fd
	more.Reason = "17 bytes of events are unread"
	another := fd
	another.Resource = "fd 4 → /a"
	// The daemon has been asked, and says that it has another name.
	linked, called := Obstacle{PID: 2, Resource: "fd 3 → /b", Reason: "it is unlinked, and has another name"},
		Obstacle{PID: 2, Resource: "fd 3 → /b (deleted)", Reason: "no file of that very name is on --to"}
	if got := still([]Obstacle{linked}, []Obstacle{called}); len(got) != 1 {
		t.Errorf("a file that was unlinked, and looks otherwise when its daemon was asked, is not in the way any more: %v", got)
	}
	mount := Obstacle{Resource: "mount /m"}
	got := still([]Obstacle{fd}, []Obstacle{more, another, mount})
	if len(got) != 2 || got[0].Resource != fd.Resource || got[1].Resource != mount.Resource {
		t.Errorf("still in the way: %v", got)
	}
}

// TestRefreshOfWhatWasLeftOut has the last look while all run find something in the
// way that no look before has. It counts when it is there still, though nothing has
// changed since.
func TestRefreshOfWhatWasLeftOut(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "x")
	rig.Write(t, m.data+"/missing", "x")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/file", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	learn(t, plan)
	p.Open(m.old+"/missing", unix.O_RDONLY)
	if err := plan.lookOnce(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	plan.keepStill(nil)
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	freeze(t, plan, p.PID)
	var refused *RefusedError
	if err := plan.Refresh(context.Background()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("a file that has no replacement: %v", err)
	}
}
