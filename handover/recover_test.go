package handover

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"spfs/internal/freezer"
)

// A tree that was frozen by a process that is gone goes on; one that somebody
// keeps is left alone.
func TestRecover(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	h, err := freezer.Find()
	if err != nil {
		t.Fatal(err)
	}
	before, err := h.Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	i, err := findIce([]int{pid})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.open()
		i.remove()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if err := i.close(); err != nil {
		t.Fatal(err)
	}
	has := func(all []Recovered) bool {
		return slices.ContainsFunc(all, func(r Recovered) bool { return slices.Contains(r.Processes, pid) })
	}
	if all, err := Recover(); err != nil || has(all) {
		t.Fatalf("kept by us, it was let go: %v, %v", all, err)
	}
	if err := i.cgroup.SetNote(fmt.Appendf(nil, `{"Keeper":%d,"Started":"1","Temporary":true,"Before":{"%d":%q}}`, os.Getpid(), pid, before.Path())); err != nil {
		t.Fatal(err)
	}
	if all, err := Recover(); err != nil || !has(all) {
		t.Fatalf("recovered %v, %v", all, err)
	}
	if now, err := h.Of(pid); err != nil || now.Path() != before.Path() {
		t.Errorf("it is in cgroup %v, not %v (%v)", now, before, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
