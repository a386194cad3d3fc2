package swap

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopyFile(t *testing.T) {
	dir := t.TempDir()
	const page = 4096
	for _, c := range []struct {
		name string
		size int64
		put  map[int64]string
	}{
		{"empty", 0, nil},
		{"short", 3, map[int64]string{0: "abc"}},
		{"zeros", 10*page + 1, nil},
		{"edges", 600 << 10, map[int64]string{0: "x", page - 1: "yz", 256<<10 - 1: "uv", 600<<10 - 1: "w"}},
	} {
		from, err := os.Create(filepath.Join(dir, c.name))
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		if err := from.Truncate(c.size); err != nil {
			t.Fatal(err)
		}
		for at, s := range c.put {
			if _, err := from.WriteAt([]byte(s), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Fchmod(int(from.Fd()), 0o4711); err != nil {
			t.Fatal(err)
		}
		st, err := statNew(from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := os.Create(from.Name() + " copy")
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		if err := copyFile(context.Background(), to, from, &st); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		is, err := statNew(to)
		if err != nil {
			t.Fatal(err)
		}
		if is.Size != st.Size || is.Mode != st.Mode || is.Mtime != st.Mtime || is.Atime != st.Atime || is.Blocks > st.Blocks+8 {
			t.Errorf("%s: the copy is %+v, of %+v", c.name, is, st)
		}
		want, _ := os.ReadFile(from.Name())
		if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: another content (%v)", c.name, err)
		}
		// It must not end before.
		st.Size++
		if err := copyFile(context.Background(), to, from, &st); err == nil {
			t.Errorf("%s: a copy of more than there is", c.name)
		}
	}
}
