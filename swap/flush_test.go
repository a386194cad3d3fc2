package swap

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPendingIsWhatCanBeWrittenAndWasNotFlushed(t *testing.T) {
	file := func(ino uint64, flags, fd int) *Description {
		return &Description{Ino: ino, Type: unix.S_IFREG, Flags: flags, Refs: []FDRef{{Task{1, 1}, fd}}}
	}
	reader := file(1, unix.O_RDONLY, 3)
	writer := file(1, unix.O_WRONLY, 4)
	both := file(2, unix.O_RDWR, 5)
	path := file(3, unix.O_PATH, 6)
	dir := &Description{Ino: 4, Type: unix.S_IFDIR, Refs: []FDRef{{Task{1, 1}, 7}}}
	u := &Usage{Descriptions: []*Description{reader, writer, both, path, dir}}
	f := &flusher{plan: &Plan{}, done: map[FDRef]uint64{}}
	check := func(want ...*Description) {
		t.Helper()
		got := f.pending(u)
		if len(got) != len(want) {
			t.Fatalf("%d pending, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("pending %d is fd %d, want fd %d", i, got[i].Refs[0].FD, want[i].Refs[0].FD)
			}
		}
	}
	check(writer, both)
	f.done[writer.Refs[0]] = writer.Ino
	check(both)
	// The number was used again for another file.
	writer.Ino = 9
	check(writer, both)
}

func TestTakeFDCopiesTheDescription(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("12345"); err != nil {
		t.Fatal(err)
	}
	pid := os.Getpid()
	c, err := takeFD(FDRef{Task{pid, pid}, int(f.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if pos, err := unix.Seek(c, 0, unix.SEEK_CUR); err != nil || pos != 5 {
		t.Errorf("the copy stands at %d (%v), want 5: it is another description", pos, err)
	}
	if _, err := takeFD(FDRef{Task{pid, pid}, 1 << 20}); err == nil {
		t.Error("a descriptor that isn't open was taken")
	}
}
