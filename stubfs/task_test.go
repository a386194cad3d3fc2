package stubfs

import (
	"os"
	"testing"
)

func TestKillPending(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n": true,
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n":           true,
		"SigPnd:\t0000000000002000\nShdPnd:\t0000000000000000\n":           false,
		"Name:\tSigPnd:\n": false,
		"":                 false,
	} {
		if got := killPending([]byte(status)); got != want {
			t.Errorf("killPending(%q) = %v", status, got)
		}
	}
}

func TestStatFlags(t *testing.T) {
	for stat, want := range map[string]uint64{
		"1 (a) S 0 1 1 0 -1 4194560 5": 4194560,
		"1 (a) 4 (b) S 0 1 1 0 -1 4 5": 4,
		"1 (a) S 0":                    0,
		"":                             0,
	} {
		if got := statFlags([]byte(stat)); got != want {
			t.Errorf("statFlags(%q) = %d, want %d", stat, got, want)
		}
	}
}

func TestFateOf(t *testing.T) {
	for tid, want := range map[int]fate{
		os.Getpid(): lives,
		2:           kernel, // kthreadd
		1 << 30:     dying,  // beyond the largest pid there can be
		0:           lives,  // not visible
	} {
		if got := fateOf(tid); got != want {
			t.Errorf("fateOf(%d) = %d, want %d", tid, got, want)
		}
	}
}

func FuzzTaskFiles(f *testing.F) {
	f.Add([]byte("1 (a) S 0 1 1 0 -1 4194560 5"))
	f.Add([]byte("Name:\tx\nSigPnd:\t0000000000000100\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		statFlags(b)
		killPending(b)
		statusField(b, "Tgid")
	})
}
