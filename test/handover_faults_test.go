package test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"spfs/test/rig"
)

// faultyPod runs spfs for a pod with a CRIU in which something goes wrong.
func faultyPod(t *testing.T, p *rig.Pod, at, do string, args ...string) rig.Result {
	t.Helper()
	criu, options := podCRIU(t, p)
	if args[0] == "restore" {
		options = append([]string{"--root", p.Root}, options...)
	}
	cmd := exec.Command(rig.Build(t).SPFS, slices.Concat(args, []string{"--criu", rig.Build(t).FaultyCRIU, "--"}, options)...)
	cmd.Env = append(os.Environ(), "FAULTY_CRIU="+criu, "FAULTY_AT="+at, "FAULTY_DO="+do, "FAULTY_LOG="+actionLog(p))
	return rig.RunCmd(t, cmd)
}

func actionLog(p *rig.Pod) string { return p.Root + "/run/actions" }

// actions are those that CRIU has told of since it was asked before.
func actions(t *testing.T, p *rig.Pod) []string {
	t.Helper()
	b, err := os.ReadFile(actionLog(p))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(actionLog(p)); err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// Ways in which an action goes wrong.
var faults = []string{"fail", "fail late", "criu"}

// fault is what goes wrong where.
type fault struct{ at, do string }

func (f fault) String() string { return f.do + " at " + f.at }

// faultsAt are all that can go wrong at actions, or one for each, in turn.
func faultsAt(actions []string, all bool) []fault {
	list := []fault{{"request", "criu"}}
	for i, at := range actions {
		for j, do := range faults {
			if all || j == i%len(faults) {
				list = append(list, fault{at, do})
			}
		}
	}
	return list
}

// Whatever action of a restore fails in CRIU, or CRIU dies of, nothing is left
// of the restore, and the next one succeeds.
func TestHandoverCRIUFailsToRestore(t *testing.T) {
	for _, strategy := range []string{"handover", "swap"} {
		t.Run(strategy, func(t *testing.T) {
			client := rig.CounterOptions{FDs: 3, Threads: 1, Children: 1}
			p := rig.StartPod(t, rig.PodWriteback(t, "writeback"), client)
			p.Counter.CountsOn(50)
			images := dumpPod(t, p)
			p.NotRunning()
			data := contentsOf(t, p.Data)
			restore := func(at, do string) rig.Result {
				t.Helper()
				return faultyPod(t, p, at, do, "restore", "--images-dir", images, "--detach", "--strategy", strategy)
			}
			restore("", "").OK(t)
			all := actions(t, p)
			t.Logf("%q", all)
			p.Restored()
			p.Counter.CountsOn(20)
			p.Counter.Verdict()
			p.Kill()
			nothingLeft(t)
			putBack(t, data)
			for _, f := range faultsAt(all, strategy == "handover") {
				r := restore(f.at, f.do)
				t.Logf("%s: %v, status %d: %s", f, r.Took, r.Status, r.Stderr)
				if (f.at == "post-resume" || f.at == "pre-resume") && (f.do != "criu" || r.Status == 0 && f.at == "post-resume") {
					// CRIU lets the tree go all the same, or has just done so.
					r.OK(t)
					p.Restored()
					p.Counter.CountsOn(20)
					p.Counter.Verdict()
					p.Kill()
				} else if r.Status != 1 {
					t.Errorf("%s: exit status %d, want 1\n%s%s", f, r.Status, r.Stdout, r.Stderr)
				}
				p.NotRunning()
				nothingLeft(t)
				putBack(t, data) // it may have run
				if t.Failed() {
					t.FailNow()
				}
			}
			restorePod(t, p, images, "--strategy", strategy)
			p.Counter.CountsOn(20)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// contentsOf reads all files beneath a directory.
func contentsOf(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// putBack makes files what they were when an image was made that wants them so.
func putBack(t *testing.T, contents map[string][]byte) {
	t.Helper()
	for path, b := range contents {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
