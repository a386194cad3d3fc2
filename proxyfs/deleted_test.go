package proxyfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that is said to be deleted is another one from then on, for all who
// have it open, and stays that one in every directory that is shown after.
func TestDeleted(t *testing.T) {
	m := mount(t, Options{})
	populate(t, filepath.Join(m.dir, "sub"), "file")
	writeFile(t, "made up", m.dir, "sub", "file")
	reads := openFile(t, unix.O_RDONLY, m.mnt, "sub", "file")
	writes := openFile(t, unix.O_RDWR, m.mnt, "sub", "file")
	more := openFile(t, unix.O_WRONLY, m.mnt, "sub", "file")

	other := openTemp(t)
	populate(t, other, "real")
	writeFile(t, "real", other, "real")
	open := func(flags int) *os.File { // what Deleted takes
		f, err := os.OpenFile(filepath.Join(other, "real"), flags, 0)
		check(t, err)
		return f
	}
	node, parent, base, err := m.Deleted("sub/file", open(unix.O_PATH), []*os.File{open(unix.O_RDWR), open(unix.O_RDONLY)})
	check(t, err)
	if node == 0 || parent == 0 || base != "file" {
		t.Errorf("Deleted is of node %d, %q in node %d", node, base, parent)
	}
	check(t, os.Remove(filepath.Join(other, "real"))) // by these alone it is reached

	wantRead(t, reads, "real")
	_, err = writes.WriteAt([]byte("REAL"), 0)
	check(t, err)
	wantRead(t, reads, "REAL")
	// What has no descriptor of its own opens the file again.
	_, err = more.WriteAt([]byte("Rea"), 0)
	check(t, err)
	wantRead(t, reads, "ReaL")

	next := openTemp(t)
	populate(t, filepath.Join(next, "sub"), "file")
	m.retarget(t, next)
	wantRead(t, reads, "ReaL")
	_, err = writes.WriteAt([]byte("real"), 0)
	check(t, err)
	wantRead(t, reads, "real")
	// Its name is another file's.
	wantRead(t, openFile(t, unix.O_RDONLY, m.mnt, "sub", "file"), "file")
	for _, f := range []*os.File{reads, writes, more} {
		check(t, f.Close())
	}
}

func TestDeletedOfWhatIsNotThere(t *testing.T) {
	m := mount(t, Options{})
	populate(t, m.dir, "file", "unused")
	openFile(t, unix.O_RDONLY, m.mnt, "file")
	open := func(path string) *os.File {
		f, err := os.Open(path)
		check(t, err)
		return f
	}
	if node, _, _, err := m.Deleted("none", open("/dev/null"), nil); node != 0 || err != nil {
		t.Errorf("of what nobody uses: node %d, %v", node, err)
	}
	if _, _, _, err := m.Deleted("file", open("/"), nil); err == nil || !strings.Contains(err.Error(), "file") {
		t.Errorf("a directory in place of a file: %v", err)
	}
}
