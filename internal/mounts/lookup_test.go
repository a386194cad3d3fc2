package mounts

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/with space\n\\", "odd")
	tmpfs(t, dir+"/outer", "outer")
	tmpfs(t, dir+"/outer/inner", "inner")
	tmpfs(t, dir+"/stack", "below")
	tmpfs(t, dir+"/stack", "above")
	for link, target := range map[string]string{"/abs": dir + "/outer", "/rel": "outer/../outer", "/loop": "loop"} {
		if err := os.Symlink(target, dir+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chdir(dir + "/outer"); err != nil {
		t.Fatal(err)
	}
	defer os.Chdir("/")
	for path, want := range map[string]string{
		dir + "/outer":          "outer",
		dir + "/outer/":         "outer",
		dir + "//outer/./inner": "inner",
		dir + "/outer/inner/..": "outer",
		dir + "/abs":            "outer",
		dir + "/abs/inner":      "inner",
		dir + "/rel/inner":      "inner",
		dir + "/stack":          "above",
		dir + "/with space\n\\": "odd",
		"inner":                 "inner",
		".":                     "outer",
		"../stack":              "above",
		dir:                     "",
		dir + "/outer/name":     "",
		dir + "/nothing/there":  "",
		dir + "/loop":           "",
		"":                      "",
	} {
		m, err := Lookup(path)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q: found %q", path, m.Source)
		case want != "" && err != nil:
			t.Errorf("%q: %v", path, err)
		case want != "" && m.Source != want:
			t.Errorf("%q: found %q, want %q", path, m.Source, want)
		}
	}
	if _, err := Lookup(dir); !errors.Is(err, ErrNotMounted) {
		t.Errorf("a plain directory: %v, want ErrNotMounted", err)
	}
	if _, err := Lookup(dir + "/loop"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop of symlinks: %v, want ELOOP", err)
	}
}

func TestCoveredMountsAreNotFound(t *testing.T) {
	// 30 is on 20, which 25 covers: a walk to /a/b ends in 25. The lines are
	// in no order that means anything.
	table, err := parseTable(strings.NewReader(`25 10 0:25 / /a rw - tmpfs c rw
30 20 0:30 / /a/b rw - tmpfs d rw
20 1 0:20 / /a rw - tmpfs b rw
1 0 0:1 / / rw shared:7 master:3 - tmpfs a rw
26 20 0:26 / /a rw - tmpfs e rw
`))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/": 1, "/a": 26, "/a/b": 26, "/x": 1, "/ab": 1} {
		if got := table.Containing(path).ID; got != want {
			t.Errorf("%s is on mount %d, want %d", path, got, want)
		}
	}
	if m := table.Top("/a/b"); m != nil {
		t.Errorf("/a/b is mount point of %d, want none", m.ID)
	}
	if m := table.ByID(1); m.Shared != 7 || m.Master != 3 {
		t.Errorf("shared %d master %d, want 7 3", m.Shared, m.Master)
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add("25 10 0:25 / /a rw shared:1 - fuse.x src rw,user_id=0\n")
	f.Add(`36 35 98:0 /a\040b\134 /c\012 ro,nosuid master:2 propagate_from:1 unbindable - ext4 /dev/x rw` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseTable(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, m := range table {
			if strings.HasPrefix(m.Point, "/") {
				if at := table.Containing(m.Point); at != nil && table.ByID(at.ID) == nil {
					t.Errorf("%q is on a mount that is not in the table", m.Point)
				}
			}
			m.FUSE()
			m.HasOption("ro")
			m.SuperOption("user_id")
			table.Children(m)
			table.throughFUSE(m)
		}
	})
}
