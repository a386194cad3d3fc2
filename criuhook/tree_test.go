package criuhook

import (
	"bufio"
	"slices"
	"strings"
	"testing"
)

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		dir, path, rel string
		ok             bool
	}{
		{"/", "/", "/", true},
		{"/", "/a/b", "/a/b", true},
		{"/a", "/a", "/", true},
		{"/a", "/a/b", "/b", true},
		{"/a", "/ab", "", false},
		{"/a/b", "/a", "", false},
	} {
		rel, ok := below(c.dir, c.path)
		if ok != c.ok || ok && rel != c.rel {
			t.Errorf("%s below %s: %q, %v", c.path, c.dir, rel, ok)
		}
	}
}

func TestErrorLinesAreTheLastAndTheirOwn(t *testing.T) {
	log := "(00.000001) Version\n" +
		"(00.030580) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
		"(00.1) Error (a.c:1): one\n(00.2) Error (a.c:1): one\n(00.3) fine\n(00.4)      7: Error (b.c:2): two"
	got := errorLines(bufio.NewReader(strings.NewReader(log)))
	if want := []string{"Error (a.c:1): one", "Error (b.c:2): two"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = errorLines(bufio.NewReader(strings.NewReader("Error (1\nError (2\nError (3\nError (4\nError (5\nError (6\n")))
	if len(got) != shownErrors || got[len(got)-1] != "Error (6" {
		t.Errorf("%q", got)
	}
}

func TestParseExternal(t *testing.T) {
	for in, want := range map[string][2]string{
		"mnt[K]:/a/b":  {"K", "/a/b"},
		"mnt[K]:/a]:b": {"K", "/a]:b"},
		"mnt[K]:rel":   {},
		"mnt[]:/a":     {},
		"mnt[K":        {},
		"dev[1/2]:/a":  {},
		"":             {},
	} {
		key, dir, ok := parseExternal(in)
		if ok != (want[0] != "") || ok && (key != want[0] || dir != want[1]) {
			t.Errorf("%q: %q, %q, %v", in, key, dir, ok)
		}
	}
	got := externalArguments([]string{"criu", "restore", "--external", "a", "--external=b", "-D", "x", "--external"})
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
