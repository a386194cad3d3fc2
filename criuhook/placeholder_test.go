package criuhook

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// The placeholder has what CRIU looks at, and takes no space for it.
func TestPlaceholderIsWhatTheManifestSays(t *testing.T) {
	fs := &sample().FileSystems[0]
	dir, err := newPlaceholder(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, n := range fs.Nodes {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), "."+string(n.Path), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Errorf("%s: %v", n.Path, err)
			continue
		}
		got := Node{
			Path: n.Path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Target: n.Target, Seen: n.Seen,
			Atime: Time{st.Atim.Sec, st.Atim.Nsec}, Mtime: Time{st.Mtim.Sec, st.Mtim.Nsec},
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			got.Size = st.Size
		case unix.S_IFCHR:
			got.Rdev = st.Rdev
		}
		if !reflect.DeepEqual(got, n) {
			t.Errorf("got  %+v\nwant %+v", got, n)
		}
		if st.Blocks > 8 {
			t.Errorf("%s takes %d blocks", n.Path, st.Blocks)
		}
	}
	var buf [64]byte
	l, err := unix.Readlinkat(int(dir.Fd()), "d/link", buf[:])
	if err != nil || string(buf[:l]) != "../../etc/passwd" {
		t.Errorf("the link leads to %q, %v", buf[:l], err)
	}
}

// Even a manifest that passed no check makes nothing outside.
func TestMakeNodeStaysInside(t *testing.T) {
	top := t.TempDir()
	in := filepath.Join(top, "in")
	if err := os.Mkdir(in, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", filepath.Join(in, "out")); err != nil {
		t.Fatal(err)
	}
	dir, err := openImages(in)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, p := range []Text{"/../x", "/out/x", "/in/../../x", "//../x"} {
		if err := makeNode(dir, &Node{Path: p, Mode: unix.S_IFREG | 0o600}); err == nil {
			t.Errorf("%s was made", p)
		}
	}
	if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
}

func TestPositionsSurviveTheirFile(t *testing.T) {
	fs := sample().FileSystems[0]
	fs.Nodes[1].Seen = append(fs.Nodes[1].Seen, Dirent{"\xfe%", -1})
	want := map[string]map[uint64]string{"d": {1: ".", 1 << 62: "f", 1<<64 - 1: "\xfe%"}}
	at := fs.positions()
	if !reflect.DeepEqual(at, want) {
		t.Errorf("positions %v, want %v", at, want)
	}
	file, err := writePositions(t.TempDir(), at)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadPositions(file); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back %v, %v", got, err)
	}
}

func dirent(off int64, name string, length int) []byte {
	b := make([]byte, length)
	binary.NativeEndian.PutUint64(b[8:], uint64(off))
	binary.NativeEndian.PutUint16(b[16:], uint16(length))
	copy(b[19:], name)
	return b
}

func TestParseDirents(t *testing.T) {
	b := append(dirent(5, "a", 24), dirent(-7, "longer name", 32)...)
	want := []Dirent{{"a", 5}, {"longer name", -7}}
	if got := parseDirents(b); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := parseDirents(b[:40]); len(got) != 1 {
		t.Errorf("of a buffer cut short: %v", got)
	}
}
