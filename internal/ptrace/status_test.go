package ptrace

import (
	"os"
	"testing"
)

func TestParseStatus(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Status
		bad        bool
	}{
		{"process", "Name:\tState: x\nState:\tS (sleeping)\nTgid:\t7\nTracerPid:\t9\nKthread:\t0\nVmSize:\t 4 kB\nSigBlk:\t0000000000000800\nSigIgn:\t1\nSigCgt:\tffffffffffffffff\nSeccomp:\t2\n",
			Status{'S', 7, 9, false, 0x800, 1, ^uint64(0), 2}, false},
		{"kernel thread", "State:\tI (idle)\nTgid:\t2\nKthread:\t1\n", Status{State: 'I', TGID: 2, KernelThread: true}, false},
		{"kernel thread, old kernel", "State:\tS (sleeping)\nTgid:\t2\n", Status{State: 'S', TGID: 2, KernelThread: true}, false},
		{"zombie, old kernel", "State:\tZ (zombie)\nTgid:\t2\n", Status{State: 'Z', TGID: 2}, false},
		{"empty", "", Status{}, true},
		{"no state", "State:\t\nTgid:\t1\n", Status{}, true},
		{"no group", "State:\tS\n", Status{}, true},
		{"bad number", "State:\tS\nTgid:\t1x\n", Status{}, true},
	} {
		st, err := parseStatus([]byte(c.text))
		if (err != nil) != c.bad || err == nil && *st != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, st, err, c.want)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Fuzz(func(t *testing.T, text []byte) {
		if st, err := parseStatus(text); err == nil && (st.State == 0 || st.TGID <= 0) {
			t.Errorf("accepted %+v", st)
		}
	})
}

func FuzzMappingOf(f *testing.F) {
	own, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own, uint64(0x400000))
	f.Add([]byte("10-20 r\n"), uint64(0x18))
	f.Fuzz(func(t *testing.T, text []byte, addr uint64) {
		if r, ok := mappingOf(text, addr); ok && !r.has(addr) {
			t.Errorf("%#x is not in %v", addr, r)
		}
	})
}
