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

func TestMountLine(t *testing.T) {
	id, dev, ok := mountLine("163 148 0:57 / /mnt rw,nosuid,nodev - fuse.bindfs /data rw,user_id=0,group_id=0\n")
	if id != 163 || dev != 57 || !ok {
		t.Errorf("got %d, %d, %v", id, dev, ok)
	}
	if _, _, ok := mountLine("163 148\n"); ok {
		t.Error("two words are a mount")
	}
}
