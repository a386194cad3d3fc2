package swap

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		release string
		want    bool
	}{
		{"6.18.44-fc", true}, {"6.16.0", true}, {"6.16-rc1", true}, {"7.2.1", true},
		{"6.15.9", false}, {"6.1.0-18-amd64", false}, {"5.19", false}, {"", false}, {"x.y", false},
	} {
		if got := atLeast(c.release, 6, 16); got != c.want {
			t.Errorf("atLeast(%q, 6, 16) = %v, want %v", c.release, got, c.want)
		}
	}
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
	if pos, err := unix.Seek(c, 0, 1); err != nil || pos != 5 {
		t.Errorf("the copy stands at %d (%v), want 5: it is another description", pos, err)
	}
	if _, err := takeFD(FDRef{Task{pid, pid}, 1 << 20}); err == nil {
		t.Error("a descriptor that isn't open was taken")
	}
}
