package swap

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
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

// TestUnlinkedFileOnOwnersMount makes a file anew on a mount that does not admit
// root, and removes another that a swapper has left there.
func TestUnlinkedFileOnOwnersMount(t *testing.T) {
	const uid, gid = 65534, 65534
	m := newTwoMountsOf(t, uid, gid)
	user := startUser(t, uid, gid)
	fd := user.Open(m.old+"/file", unix.O_RDWR)
	user.Write(fd, "content")
	user.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, m.old+"/file", 0)
	inDirectory(t)
	r := &run{plan: m.plan(t, Scope{}, AskOld())}
	if err := r.plan.Err(); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := r.beginJournal(); err != nil {
		t.Fatal(err)
	}
	if err := r.recreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	n, err := unix.Pread(int(r.plan.Usage.fd(t, user.PID, fd).Description.Replacement.Fd()), got, 0)
	if err != nil || string(got[:n]) != "content" {
		t.Errorf("the new file holds %q (%v)", got[:max(n, 0)], err)
	}

	rec := r.journal.written
	if len(rec.Made) != 1 {
		t.Fatalf("noted: %q", rec.Made)
	}
	left := m.copy + "/" + string(rec.Made[0].Name)
	if _, err := os.Lstat(left); err == nil {
		t.Error("it has its name still")
	}
	rig.Write(t, left, "")
	found := &Recovered{}
	if err := removeMade(t.Context(), rec, found); err != nil || len(found.Problems) != 0 {
		t.Errorf("removing it: %v, problems %q", err, found.Problems)
	}
	if _, err := os.Lstat(left); err == nil {
		t.Error("it was not removed")
	}
	if err := r.journal.remove(); err != nil {
		t.Error(err)
	}
}
