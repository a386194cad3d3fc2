package proctree

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
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

func TestWhoDescends(t *testing.T) {
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	self, pid := os.Getpid(), child.Process.Pid
	for _, c := range []struct {
		tid, root int
		want      bool
	}{
		{self, self, true}, {pid, self, true}, {pid, pid, true}, {self, pid, false},
		{unix.Gettid(), self, true}, {2, self, false}, {1 << 22, self, false}, {0, self, false},
	} {
		if got := Descends(c.tid, c.root); got != c.want {
			t.Errorf("that %d descends from %d is %v", c.tid, c.root, got)
		}
	}
	if numbers, err := Numbers(pid); err != nil || numbers[0] != pid {
		t.Errorf("the numbers of %d are %v, %v", pid, numbers, err)
	}
	if Ending(pid) {
		t.Error("it is taken for one that is ending")
	}
	if Kernel(self) || Kernel(1<<22) {
		t.Error("it is taken for the kernel's")
	}
}
