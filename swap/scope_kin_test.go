package swap

import (
	"os"
	"testing"
)

func TestParseKin(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       kin
		alive, bad bool
	}{
		{"a process", "Name:\tsleep\nState:\tS (sleeping)\nPPid:\t7\nVmSize:\t 100 kB\n", kin{"sleep", 7, false}, true, false},
		{"a kernel thread", "Name:\tkthreadd\nState:\tS (sleeping)\nPPid:\t0\n", kin{"kthreadd", 0, true}, true, false},
		{"a zombie", "Name:\tx\nState:\tZ (zombie)\nPPid:\t7\n", kin{"x", 7, false}, false, false},
		{"a leader that has exited", "Name:\tx\nState:\tZ (zombie)\nPPid:\t7\nThreads:\t3\n", kin{"x", 7, false}, true, false},
		{"no parent", "Name:\tx\nState:\tS (sleeping)\n", kin{}, false, true},
		{"a parent that is no number", "PPid:\tx\n", kin{}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, alive, err := parseKin([]byte(c.text))
			if (err != nil) != c.bad || got != c.want || alive != c.alive {
				t.Errorf("%+v, alive %v, error %v; want %+v, %v, an error: %v", got, alive, err, c.want, c.alive, c.bad)
			}
		})
	}
}

func TestAllProcessesKnowsUsAndOurParent(t *testing.T) {
	all, err := allProcesses()
	if err != nil {
		t.Fatal(err)
	}
	us, ok := all[os.Getpid()]
	if !ok || us.ppid != os.Getppid() || us.kernel {
		t.Errorf("this process: %+v (%v), want parent %d, no kernel thread", us, ok, os.Getppid())
	}
}

func FuzzParseKin(f *testing.F) {
	f.Add([]byte("Name:\tsleep\nState:\tS (sleeping)\nPPid:\t7\nVmSize:\t 100 kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if p, alive, err := parseKin(text); err != nil && (alive || p != kin{}) {
			t.Errorf("%+v, alive %v, and an error: %v", p, alive, err)
		}
	})
}
