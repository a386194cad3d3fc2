package handover

import "testing"

func TestCovers(t *testing.T) {
	told := CRIU{FreezeCgroup: "/c", External: []string{"file[1:2]", "file[1:3]", "file[4:5]"}}
	for _, c := range []struct {
		what string
		must CRIU
		want bool
	}{
		{"less", CRIU{FreezeCgroup: "/c", External: []string{"file[4:5]", "file[1:2]"}}, true},
		{"the same", told, true},
		{"another file", CRIU{FreezeCgroup: "/c", External: []string{"file[1:2]", "file[1:4]"}}, false},
		{"another cgroup", CRIU{FreezeCgroup: "/d"}, false},
		{"a temporary cgroup", CRIU{FreezeCgroup: "/c", Temporary: true}, false},
	} {
		if got := told.Covers(c.must); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
