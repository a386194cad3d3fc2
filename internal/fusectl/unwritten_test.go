package fusectl

import "testing"

const stats = `BdiWriteback:                4 kB
BdiReclaimable:              8 kB
BdiDirtyThresh:         601672 kB
BdiDirtied:                 96 kB
BdiWritten:                 84 kB
BdiWriteBandwidth:           0 kBps
b_dirty:                     2
b_io:                        1
b_more_io:                   0
b_dirty_time:                7
state:                       1
`

func TestParseStats(t *testing.T) {
	got, err := parseStats(stats)
	if want := (Unwritten{Files: 3, Bytes: 12 << 10, Ever: 96 << 10}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "BdiWriteback: 4 kB\n", stats + "b_io: x\n", stats + "b_io: -1\n", stats + "b_io: 99999999999999999999\n", stats + "b_io: 1\n"} {
		if _, err := parseStats(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzParseStats(f *testing.F) {
	f.Add(stats)
	f.Add("b_dirty:")
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := parseStats(text); err == nil && (u.Files < 0 || u.Bytes < 0 || u.Ever < 0) {
			t.Errorf("%+v", u)
		}
	})
}
