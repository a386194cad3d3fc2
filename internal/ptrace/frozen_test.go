package ptrace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"spfs/internal/freezer"
)

// A frozen process is stopped again without running on in between, and has its
// system call restarted when it is let go.
func TestFrozenAreSeized(t *testing.T) {
	hierarchy, err := freezer.Find()
	if err != nil {
		t.Fatal(err)
	}
	cgroup, err := hierarchy.Create(fmt.Sprintf("spfs-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	// Nobody must wait for it meanwhile: that takes the reports of its stops.
	cmd := exec.Command("sh", "-c", "cat; exit 3")
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	before, err := hierarchy.Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cgroup.Thaw()
		cmd.Process.Kill()
		cmd.Wait()
		if err := cgroup.Remove(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pid := cmd.Process.Pid
	tr := New()
	defer tr.Close()
	for range 10 {
		p, err := tr.Seize(ctx, pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(cgroup.Add(pid), cgroup.Freeze(), p.Release(), cgroup.AwaitFrozen(ctx)); err != nil {
			t.Fatal(err)
		}
		ps, err := tr.SeizeFrozen(ctx, []int{pid}, cgroup.Thaw)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(before.Add(pid), ps[0].Release()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tr.SeizeFrozen(ctx, []int{pid}, func() error { return errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("it could not be thawed: %v", err)
	}
	in.Close()
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.ExitCode() != 3 {
		t.Errorf("it ended with %v", err)
	}
}
