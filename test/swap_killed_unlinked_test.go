package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// TestSwapKilledWhileAFileIsMadeAnew kills swappers while an unlinked file has a
// name on the new mount: whoever recovers takes it away.
func TestSwapKilledWhileAFileIsMadeAnew(t *testing.T) {
	// Alone, as TestSwapKilledAtEveryPoint.
	program := rig.BuildWith(t, "spfs-swap", "faults")
	m := bindfsTwice(t)
	rig.Mkdir(t, m.data, "dir")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/dir/f", unix.O_RDWR|unix.O_CREAT)
	p.Write(fd, pages(5))
	unlinker{p}.unlink(m.old + "/dir/f")
	made := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(m.data + "/dir")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".spfs-") {
				names = append(names, e.Name())
			}
		}
		return names
	}
	log := rig.Dir(t)
	kill := func(point, who string) {
		t.Helper()
		cmd := exec.Command(program, "run", "--from", m.old, "--to", m.new)
		cmd.Env = append(os.Environ(), "SPFS_FAULT="+point, "SPFS_FAULT_KILL="+who, "SPFS_FAULT_LOG="+log+"/"+who+strings.ReplaceAll(point, " ", "-"))
		if r := rig.RunCmd(t, cmd); r.Status == 0 {
			t.Fatalf("kill %s at %q: it was not killed: %s", who, point, r.Stderr)
		}
	}
	for _, point := range []string{"unlinked file created", "unlinked file copied"} {
		m.unchangedBy(t, p, func() {
			kill(point, "self")
			if left := made(); len(left) != 0 {
				t.Errorf("after the worker was killed at %q: %q are left", point, left)
			}
			kill(point, "all")
			if left := made(); len(left) != 1 {
				t.Fatalf("all were killed at %q, and %q are there", point, left)
			}
			if found := recoverRuns(t, program); len(found) != 1 || found[0].Swapped || len(found[0].Problems) != 0 {
				t.Errorf("recover found %+v", found)
			}
			if left := made(); len(left) != 0 {
				t.Errorf("after a recovery: %q are left", left)
			}
			if again := recoverRuns(t, program); len(again) != 0 {
				t.Errorf("a second recovery found %+v", again)
			}
		})
	}
	m.swap(t)
	p.Seek(fd, 0, unix.SEEK_SET)
	if got := p.Read(fd, 5*page); got != pages(5) {
		t.Error("the content is another")
	}
}
