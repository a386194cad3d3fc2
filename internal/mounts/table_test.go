package mounts

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseTable(t *testing.T) {
	table, err := parseTable(strings.NewReader("163 148 0:57 / /mnt rw,nosuid,nodev - fuse.bindfs /data rw,user_id=0,group_id=0\n"))
	if err != nil || len(table) != 1 || table[0].ID != 163 || table[0].Dev != 57 {
		t.Errorf("got %+v, %v", table, err)
	}
	if _, err := parseTable(strings.NewReader("163 148\n")); err == nil {
		t.Error("two words are a mount")
	}
}

func TestOf(t *testing.T) {
	table, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(table, func(m *Mount) bool { return m.Point == "/proc" && m.FSType == "proc" }) {
		t.Errorf("/proc is not among its mounts: %+v", table)
	}
	if _, err := Of(1 << 30); err == nil {
		t.Error("a process that there is not has mounts")
	}
}

func TestFUSE(t *testing.T) {
	for fstype, want := range map[string]bool{
		"fuse": true, "fuse.sshfs": true, "fuseblk": true, "fuseblk.ntfs": true,
		"fusectl": false, "ext4": false, "": false, "notfuse.sshfs": false,
	} {
		if (&Mount{FSType: fstype}).FUSE() != want {
			t.Errorf("%q: %v", fstype, !want)
		}
	}
}
