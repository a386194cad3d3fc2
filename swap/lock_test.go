package swap

import (
	"errors"
	"testing"
)

func TestParseLock(t *testing.T) {
	for text, want := range map[string]lock{
		"FLOCK ADVISORY WRITE 123 00:2d:5 0 EOF":  {flockLock, true, 123, 0, toEnd},
		"FLOCK ADVISORY READ 0 00:2d:5 0 EOF":     {flockLock, false, 0, 0, toEnd},
		"POSIX ADVISORY READ 123 00:2d:5 10 19":   {recordLock, false, 123, 10, 19},
		"OFDLCK ADVISORY WRITE -1 00:2d:5 7 7":    {ofdLock, true, -1, 7, 7},
		"LEASE ACTIVE READ 123 00:2d:5 0 EOF":     {leaseLock, false, 123, 0, toEnd},
		"POSIX ADVISORY WRITE 5 00:2d:5 1024 EOF": {recordLock, true, 5, 1024, toEnd},
	} {
		got, err := parseLock(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v (%v), want %+v", text, got, err, want)
		}
	}
	if _, err := parseLock("LEASE BREAKING READ 123 00:2d:5 0 EOF"); !errors.Is(err, errBreaking) {
		t.Errorf("a lease that is being broken: %v", err)
	}
	for _, bad := range []string{
		"", "POSIX", "POSIX ACCESS ADVISORY READ 1 00:2d:5 0 EOF", "POSIX MANDATORY WRITE 1 00:2d:5 0 EOF",
		"DELEG ACTIVE READ 1 00:2d:5 0 EOF", "POSIX ADVISORY UNLCK 1 00:2d:5 0 EOF", "POSIX ADVISORY READ 1 00:2d:5 9 5",
		"POSIX ADVISORY READ 1 00:2d:5 -1 5", "POSIX ADVISORY READ x 00:2d:5 0 5", "POSIX ADVISORY READ 1 00:2d:5 0 99999999999999999999",
	} {
		if l, err := parseLock(bad); err == nil {
			t.Errorf("%q was understood as %+v", bad, l)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add("FLOCK ADVISORY WRITE 123 00:2d:5 0 EOF")
	f.Add("POSIX ADVISORY READ 123 00:2d:5 10 19")
	f.Add("LEASE BREAKING READ 123 00:2d:5 0 EOF")
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := parseLock(text); err == nil && (l.start < 0 || l.end < l.start) {
			t.Errorf("%q is %+v", text, l)
		}
	})
}

func FuzzKernelLock(f *testing.F) {
	f.Add("1: POSIX  ADVISORY  WRITE 123 00:2d:5 0 EOF\n1: -> POSIX  ADVISORY  WRITE 124 00:2d:5 0 EOF\n")
	f.Fuzz(func(t *testing.T, text string) {
		kernelLock(text, 0x2d, 5) // no panic
	})
}

func TestKernelLock(t *testing.T) {
	const text = "1: POSIX  ADVISORY  WRITE 123 00:2d:5 0 EOF\n1: -> POSIX  ADVISORY  WRITE 124 00:2d:6 0 EOF\n" +
		"2: FLOCK  ADVISORY  WRITE 123 00:2d:7 0 EOF\n3: OFDLCK ADVISORY  READ -1 00:2d:8 0 EOF\n"
	for ino, want := range map[uint64]bool{5: true, 6: true, 7: false, 8: true, 9: false} {
		if got := kernelLock(text, 0x2d, ino); got != want {
			t.Errorf("record lock of inode %d: %v, want %v", ino, got, want)
		}
	}
	if kernelLock(text, 0x2e, 5) {
		t.Error("another file system's lock is taken for this one's")
	}
}
