package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spfs/test/rig"
)

// goesOn checks that a pod runs on after a dump that failed as it did before.
func goesOn(t *testing.T, p *rig.Pod, what string, tree []int, devices []string) {
	t.Helper()
	p.Counter.CountsOn(20)
	p.Counter.Verdict()
	if got := descriptorsOf(t, p.Daemon()); !slices.Equal(got, devices) {
		t.Errorf("%s: the daemon's /dev/fuse are %v, want %v", what, got, devices)
	}
	if n := placeholders(t, p.Daemon()); n > 0 {
		t.Errorf("%s: the daemon has %d placeholders", what, n)
	}
	if got := rig.Tree(p.PID); !slices.Equal(got, tree) {
		t.Errorf("%s: the processes are %v, want %v", what, got, tree)
	}
	for _, pid := range tree {
		if cgroup, err := os.ReadFile("/proc/" + itoa(pid) + "/cgroup"); err != nil || strings.Contains(string(cgroup), "spfs-dump") {
			t.Errorf("%s: process %d is left in %s (%v)", what, pid, cgroup, err)
		}
	}
	if t.Failed() {
		t.Fatalf("%s; the pod says: %s", what, p.Log())
	}
}

// placeholders counts the descriptors of a process that stand for a device.
func placeholders(t *testing.T, pid int) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/" + itoa(pid) + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.Contains(link, "spfs-connection") {
			n++
		}
	}
	return n
}

// dumpFails dumps a pod, and has something go wrong each time; the pod must run
// on as it did.
func dumpFails(t *testing.T, p *rig.Pod, faults []fault) {
	t.Helper()
	before, devices, tree := stateOf(t, p), descriptorsOf(t, p.Daemon()), rig.Tree(p.PID)
	for _, f := range faults {
		images := rig.Mkdir(t, rig.Dir(t), "images")
		logs(t, images)
		r := faultyPod(t, p, f.at, f.do, "dump", "--tree", itoa(p.PID), "--images-dir", images)
		t.Logf("%s: %v: %s", f, r.Took, r.Stderr)
		if r.Status != 1 {
			t.Errorf("%s: exit status %d, want 1\n%s%s", f, r.Status, r.Stdout, r.Stderr)
		}
		goesOn(t, p, f.String(), tree, devices)
		if left, err := os.ReadDir(images); err != nil || len(left) > 1 {
			t.Errorf("%s: %v is left (%v)", f, left, err)
		}
	}
	before.check(t, p)
}

// Whatever action of a dump fails in CRIU, or CRIU dies of, the pod runs on: it
// may be that it was not stopped yet, for CRIU begins before that. Once the pod
// has been restored, its connection is one that was mounted outside of it.
func TestHandoverCRIUFailsToDump(t *testing.T) {
	p := rig.StartPod(t, rig.PodWriteback(t, "writeback"), podClient)
	p.Counter.CountsOn(50)
	images := rig.Mkdir(t, rig.Dir(t), "images")
	logs(t, images)
	faultyPod(t, p, "", "", "dump", "--tree", itoa(p.PID), "--images-dir", images, "--leave-running").OK(t)
	all := actions(t, p)
	t.Logf("%q", all)
	if !slices.Contains(all, "pre-dump") || !slices.Contains(all, "post-dump") {
		t.Fatalf("CRIU told of %q", all)
	}
	dumpFails(t, p, faultsAt(all, true))
	var deaths []fault
	for _, at := range all {
		deaths = append(deaths, fault{at, "criu"})
	}
	for _, faults := range [][]fault{deaths, nil} {
		restorePod(t, p, dumpPod(t, p))
		p.Counter.CountsOn(20)
		dumpFails(t, p, faults)
	}
	p.Counter.Check()
	p.Counter.End(p.Data)
}
