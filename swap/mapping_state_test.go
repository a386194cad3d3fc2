package swap

import "testing"

func TestLocking(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		limit memoryLimit
		size  uint64
		want  locking
		fails bool
	}{
		{memoryLimit{locked: mib, most: 2 * mib}, mib, lockBeside, false},
		{memoryLimit{locked: mib, most: 2*mib - 1}, mib, lockInTurn, false},
		{memoryLimit{locked: mib, most: mib}, mib, lockInTurn, false},
		{memoryLimit{locked: mib, most: mib - 1}, mib, 0, true},
		{memoryLimit{locked: mib, most: 0, exempt: true}, mib, lockBeside, false},
		{memoryLimit{locked: ^uint64(0), most: ^uint64(0)}, ^uint64(0), lockInTurn, false},
	} {
		got, err := c.limit.locking(c.size)
		if (err != nil) != c.fails || got != c.want {
			t.Errorf("%+v of %d bytes: %v (%v), want %v", c.limit, c.size, got, err, c.want)
		}
	}
}

const (
	statusLocked = "Name:\tcat\nVmLck:\t      24 kB\nCapEff:\t000001ffffffffff\n"
	limitsLocked = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max locked memory         8388608              unlimited            bytes     \n"
)

func TestParseLocked(t *testing.T) {
	l, err := parseLocked(statusLocked)
	if err != nil || l.locked != 24<<10 || !l.exempt {
		t.Errorf("got %+v (%v)", l, err)
	}
	if l, err := parseLocked("VmLck:\t0 kB\nCapEff:\t0\n"); err != nil || l != (memoryLimit{}) {
		t.Errorf("got %+v (%v) of nothing", l, err)
	}
	if n, err := parseLockLimit(limitsLocked); err != nil || n != 8<<20 {
		t.Errorf("limit %d (%v)", n, err)
	}
	if n, err := parseLockLimit("Max locked memory         unlimited            unlimited            bytes\n"); err != nil || n != ^uint64(0) {
		t.Errorf("no limit: %d (%v)", n, err)
	}
	for _, bad := range []string{"", "VmLck:\t1 kB\n", "VmLck:\t99999999999999999999 kB\nCapEff:\t0\n", "VmLck:\nCapEff:\t0\n", "VmLck: 1\nCapEff: 0\n"} {
		if _, err := parseLocked(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseLocked(f *testing.F) {
	f.Add(statusLocked)
	f.Add(limitsLocked)
	f.Fuzz(func(t *testing.T, text string) {
		parseLockLimit(text)
		if l, err := parseLocked(text); err == nil && l.locked%1024 != 0 {
			t.Errorf("%d bytes are locked", l.locked)
		}
	})
}
