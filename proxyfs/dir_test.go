package proxyfs

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// readDir lists an open directory from its position on, with getdents64.
func readDir(t *testing.T, fd int, max int) (list []dirent) {
	t.Helper()
	buf := make([]byte, 8192)
	for max <= 0 || len(list) < max {
		n, err := unix.Getdents(fd, buf)
		check(t, err)
		if n == 0 {
			break
		}
		list, err = parseDirents(list, buf[:n])
		check(t, err)
	}
	return list
}

func names(list []dirent) (names []string) {
	for _, e := range list {
		names = append(names, e.name)
	}
	return names
}

func populate(t *testing.T, dir string, names ...string) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o755))
	for _, name := range names {
		writeFile(t, name, dir, name)
	}
}

func numbered(prefix string, n int) (names []string) {
	for i := 0; i < n; i++ {
		names = append(names, fmt.Sprint(prefix, i))
	}
	return names
}

func open(t *testing.T, flags int, path ...string) int {
	t.Helper()
	fd, err := unix.Open(filepath.Join(path...), flags|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func seek(t *testing.T, fd int, pos uint64) {
	t.Helper()
	_, err := unix.Seek(fd, int64(pos), unix.SEEK_SET)
	check(t, err)
}

// A hundred thousand entries: each once, and every position leads behind the
// entry that it was given with, in whatever order they are used, while entries
// come and go.
func TestReadDirOfManyEntries(t *testing.T) {
	const count = 100_000
	top := openTemp(t)
	dir := filepath.Join(top, "dir")
	mountTmpfs(t, dir) // which makes so many files in a second
	for i := 0; i < count; i++ {
		check(t, unix.Mknod(filepath.Join(dir, fmt.Sprint("entry-", i)), unix.S_IFREG|0o644, 0))
	}
	m := mountDir(t, dir, filepath.Join(top, "mnt"), Options{})
	fd := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt)
	all := readDir(t, fd, 0)
	seen := make(map[string]bool, len(all))
	for _, e := range all {
		if seen[e.name] {
			t.Fatalf("%s is there twice", e.name)
		}
		seen[e.name] = true
	}
	if len(all) != count+2 {
		t.Fatalf("%d entries, want %d", len(all), count+2)
	}
	for i := 0; i < 200; i++ {
		at := rand.Intn(len(all) - 1)
		check(t, os.Remove(filepath.Join(dir, fmt.Sprint("entry-", i))))
		populate(t, dir, fmt.Sprint("new-", i))
		seek(t, fd, all[at].cookie)
		if got := readDir(t, fd, 1)[0]; got != all[at+1] {
			t.Fatalf("after position %d comes %v, want %v", all[at].cookie, got, all[at+1])
		}
	}
	seek(t, fd, 0)
	if got := names(readDir(t, fd, 0)); len(got) != count+2 || !slices.Contains(got, "new-0") || slices.Contains(got, "entry-0") {
		t.Errorf("after a rewind there are %d entries, or not the new ones", len(got))
	}
}

// Positions that another file system gave out lead to the same entries, and
// are listed with them.
func TestPositionAliases(t *testing.T) {
	const foreign, other = 0x7123456789abcdef, 42
	m := mount(t, Options{Positions: map[string]map[uint64]string{
		"": {7: "f3"}, "sub": {foreign: "f5", other: "f9", 43: "f9", 9: "missing"},
	}})
	files := numbered("f", 20)
	populate(t, m.dir, files...)
	populate(t, filepath.Join(m.dir, "sub"), files...)
	plain := names(readDir(t, open(t, unix.O_RDONLY, m.dir, "sub"), 0))

	fd := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt, "sub")
	for cookie, name := range map[uint64]string{foreign: "f5", other: "f9", 43: "f9"} {
		seek(t, fd, cookie)
		want := plain[slices.Index(plain, name)+1:]
		if got := names(readDir(t, fd, 0)); !slices.Equal(got, want) {
			t.Errorf("after %d: %v, want %v", cookie, got, want)
		}
	}
	seek(t, fd, 9) // the first known position, after an entry that is gone
	if got := names(readDir(t, fd, 0)); !slices.Equal(got, plain[1:]) {
		t.Errorf("after one entry: %v, want %v", got, plain[1:])
	}
	seek(t, fd, 0)
	given := make(map[uint64]string)
	for _, e := range readDir(t, fd, 0) {
		if was := given[e.cookie]; was != "" {
			t.Errorf("%s and %s have the same position %d", was, e.name, e.cookie)
		}
		given[e.cookie] = e.name
	}
	if given[foreign] != "f5" || given[other] != "f9" {
		t.Errorf("positions are of %q and %q", given[foreign], given[other])
	}
	root := open(t, unix.O_RDONLY|unix.O_DIRECTORY, m.mnt)
	seek(t, root, 7)
	rest := names(readDir(t, root, 0))
	if plain := names(readDir(t, open(t, unix.O_RDONLY, m.dir), 0)); !slices.Equal(rest, plain[slices.Index(plain, "f3")+1:]) {
		t.Errorf("in the root, after f3: %v", rest)
	}
}

func dirents(cookie func(i int) uint64, names ...string) (list []dirent) {
	for i, name := range names {
		list = append(list, dirent{name: name, ino: uint64(i + 1), cookie: cookie(i)})
	}
	return list
}

func TestListing(t *testing.T) {
	rise := func(i int) uint64 { return uint64(i+1) * 10 }
	after := func(l *listing, cookie uint64) string {
		l.seek(cookie)
		if l.next == len(l.entries) {
			return "end"
		}
		return l.entries[l.next].name
	}
	for _, c := range []struct {
		what    string
		then    []dirent
		inPlace bool
		cookie  uint64
		want    string
	}{
		{"known", nil, false, 20, "c"},
		{"beginning", nil, false, 0, "a"},
		{"last", nil, false, 40, "end"},
		{"unknown, between two", nil, false, 25, "c"},
		{"unknown, beyond", nil, false, 1 << 62, "end"},
		{"exchanged: order of names changed", dirents(rise, "d", "c", "b", "a"), true, 20, "c"},
		{"exchanged: entry gone", dirents(rise, "d", "c", "a"), true, 20, "c"},
		{"exchanged: all before gone", dirents(rise, "d"), true, 20, "d"},
		{"exchanged: new ones come last", dirents(rise, "x", "a", "b", "c", "d"), true, 40, "x"},
		{"exchanged: nothing left", nil, true, 40, "end"},
		{"exchanged: cookie of a new one was another's", dirents(rise, "x", "a"), true, 10, "x"},
		{"rewound: positions are the new ones", dirents(rise, "d", "c", "b", "a"), false, 20, "b"},
		{"exchanged: not rising", dirents(func(i int) uint64 { return uint64(9 - i) }, "p", "q", "a"), true, 10, "p"},
	} {
		l := newListing(nil)
		l.replace(dirents(rise, "a", "b", "c", "d"), false)
		if c.then != nil || c.inPlace {
			l.replace(c.then, c.inPlace)
		}
		if got := after(l, c.cookie); got != c.want {
			t.Errorf("%s: after %d comes %s, want %s", c.what, c.cookie, got, c.want)
		}
	}
}

// FuzzListing checks that cookies are unique positions, whatever the file
// system below and the history say.
func FuzzListing(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{3, 2, 1}, uint64(5), true)
	f.Fuzz(func(t *testing.T, first, second []byte, alias uint64, inPlace bool) {
		list := func(cookies []byte) (list []dirent) {
			for i, c := range cookies {
				list = append(list, dirent{name: fmt.Sprint("n", (i*7+int(c))%64, "-", i%8), cookie: uint64(c)})
			}
			slices.SortFunc(list, func(a, b dirent) int { return len(a.name) - len(b.name) })
			return slices.CompactFunc(list, func(a, b dirent) bool { return a.name == b.name })
		}
		unique := func(in []dirent) bool {
			seen := map[string]bool{}
			for _, e := range in {
				if seen[e.name] {
					return false
				}
				seen[e.name] = true
			}
			return true
		}
		a, b := list(first), list(second)
		if !unique(a) || !unique(b) {
			return // not a directory
		}
		l := newListing(map[uint64]string{alias & maxCookie: "n1-1"})
		l.replace(a, false)
		l.replace(b, inPlace)
		if len(l.entries) != len(b) {
			t.Fatalf("%d entries, want %d", len(l.entries), len(b))
		}
		for i, e := range l.entries {
			if e.cookie == 0 || e.cookie > maxCookie {
				t.Fatalf("%s has position %d", e.name, e.cookie)
			}
			if got := l.find(e.cookie); got != i+1 {
				t.Fatalf("position %d after entry %d leads to %d", e.cookie, i, got)
			}
		}
	})
}

func TestParseDirents(t *testing.T) {
	entry := func(name string, reclen int) []byte {
		b := make([]byte, max(reclen, direntName+len(name)))
		binary.NativeEndian.PutUint64(b, 77)
		binary.NativeEndian.PutUint64(b[direntOff:], 88)
		binary.NativeEndian.PutUint16(b[direntReclen:], uint16(reclen))
		b[direntType] = unix.DT_DIR
		copy(b[direntName:], name)
		return b[:max(reclen, direntName)]
	}
	list, err := parseDirents(nil, append(entry("a", 24), entry("name", 32)...))
	want := []dirent{{"a", 77, 88, unix.DT_DIR}, {"name", 77, 88, unix.DT_DIR}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("%v, %v, want %v", list, err, want)
	}
	for what, bad := range map[string][]byte{
		"cut short": entry("a", 24)[:20], "no end of name": entry("abcde", 24), "empty name": entry("", 24),
		"no length": entry("a", 0), "header only": entry("a", 24)[:10],
	} {
		if _, err := parseDirents(nil, bad); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func FuzzParseDirents(f *testing.F) {
	f.Add(make([]byte, 24))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x18\x00\x04a\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, buf []byte) {
		list, err := parseDirents(nil, buf)
		if err == nil && len(list) > len(buf)/(direntName+1) {
			t.Errorf("%d entries of %d bytes", len(list), len(buf))
		}
		for _, e := range list {
			if e.name == "" {
				t.Error("an entry without a name")
			}
		}
	})
}
