package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

func TestSwapWritesATrace(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "content")
	p, q := rig.StartPuppet(t), rig.StartPuppet(t)
	p.Open(m.old+"/f", unix.O_RDONLY)
	q.Open(m.old+"/f", unix.O_RDONLY)
	file := filepath.Join(rig.Dir(t), "trace")
	r := m.swap(t, "--trace", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var trace struct {
		Events []struct {
			Name string  `json:"name"`
			Kind string  `json:"ph"`
			At   float64 `json:"ts"`
			Took float64 `json:"dur"`
			PID  int     `json:"pid"`
			Args struct{ Name string }
		} `json:"traceEvents"`
	}
	if err := json.Unmarshal(text, &trace); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	seen := map[int][]string{}
	names := map[string]int{}
	for _, e := range trace.Events {
		switch e.Kind {
		case "M":
			names[e.Args.Name] = e.PID
		case "X":
			seen[e.PID] = append(seen[e.PID], e.Name)
			if e.At < 0 || e.Took < 0 || e.Took > float64(r.TotalUS)+10e6 {
				t.Errorf("%s of %d began at %v and took %v", e.Name, e.PID, e.At, e.Took)
			}
			if e.Name == "stopped" && e.Took > float64(r.StoppedUS)+1000 {
				t.Errorf("process %d was stopped for %v µs, all together for %d", e.PID, e.Took, r.StoppedUS)
			}
		}
	}
	for _, p := range []*rig.Puppet{p, q} {
		if got := strings.Join(seen[p.PID], " "); got != "stop prepare copy finish stopped" {
			t.Errorf("process %d: %s", p.PID, got)
		}
		if names[itoa(p.PID)+" (puppet)"] != p.PID {
			t.Errorf("process %d has no name in %v", p.PID, names)
		}
		delete(seen, p.PID)
	}
	for _, phases := range seen { // of spfs-swap
		got := strings.Join(phases, ", ")
		for _, want := range []string{"planning", "flushing", "stopping 2 processes", "looking again", "preparing 2 processes", "committing"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is not in %q", want, got)
			}
		}
	}
	if len(seen) != 1 {
		t.Errorf("%d more processes have events, want 1", len(seen))
	}
	rig.Run(t, rig.Build(t).Swap, "run", "--trace", filepath.Dir(file), "--from", m.old, "--to", m.new).Fails(t, 1, "--trace")
}

func TestSwapShowsProgressOnATerminal(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "content")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/f", unix.O_RDONLY)
	line := strings.Join([]string{rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new}, " ")
	out := rig.Run(t, "script", "-qec", line, "/dev/null").OK(t).Stdout
	for _, want := range []string{"planning …", "stopping 1 process …", "committing …", "\x1b[Kswapped 1 processes"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
}
