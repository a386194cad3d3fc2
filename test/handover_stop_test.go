package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"spfs/test/rig"
)

// Stopped and put back, over and over, a tree with its own daemon goes on as if
// nobody had been there, and nothing is left in it.
func TestStoppedAndPutBack(t *testing.T) {
	for _, k := range pods(t) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			daemon := p.Daemon()
			before := descriptorsOf(t, daemon)
			out := stopper(t, p, 20, 20*time.Second)
			p.Counter.CountsOn(100)
			if after := descriptorsOf(t, daemon); !slices.Equal(before, after) {
				t.Errorf("the daemon's /dev/fuse were %v, and are %v", before, after)
			}
			t.Logf("%slongest pause %v", out, p.Counter.Pause())
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// stopper stops a pod and puts it back.
func stopper(t *testing.T, p *rig.Pod, rounds int, timeout time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, rig.Build(t).Stopper, fmt.Sprint(p.PID), fmt.Sprint(rounds), timeout.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, p.Log())
	}
	return string(out)
}

// descriptorsOf lists the kinds of /dev/fuse that a process has: what fdinfo
// says of them, each once. With clone_fd, threads and theirs come and go.
func descriptorsOf(t *testing.T, pid int) (kinds []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && filepath.Base(link) == "fuse" {
			info, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, string(info))
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}
