package proctree

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
)

func TestTreeHasItsRootAndNobodyTwice(t *testing.T) {
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer in.Close()

	pids, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if pids[0] != os.Getpid() {
		t.Errorf("the root is %d, want %d", pids[0], os.Getpid())
	}
	if !slices.Contains(pids, child.Process.Pid) {
		t.Errorf("child %d is not in %v", child.Process.Pid, pids)
	}
	slices.Sort(pids)
	if len(slices.Compact(slices.Clone(pids))) != len(pids) {
		t.Errorf("some are listed twice: %v", pids)
	}
	if _, err := Of(1 << 30); err == nil {
		t.Error("a pid that cannot be has a tree")
	}
}

func TestStatBeginsWithTheState(t *testing.T) {
	fields, err := Stat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if fields[0] != "R" && fields[0] != "S" || fields[1] != strconv.Itoa(os.Getppid()) {
		t.Errorf("state %s, parent %s, want R or S and %d", fields[0], fields[1], os.Getppid())
	}
	if _, err := Stat(1 << 30); err == nil {
		t.Error("a pid that cannot be has a state")
	}
}
