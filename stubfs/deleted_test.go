package stubfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that is made a deleted one is so for the kernel, and has the content of
// what was given for it when the gate opens, onto whatever directory.
func TestDeleted(t *testing.T) {
	m := mountProxy(t)
	m.write("file", "made up\n")
	m.write("other", "another\n")
	p := m.startProgram("/bin/sh", "-c", `exec 3<"$0" && echo open && read x && exec cat <&3`, m.path("file"))
	p.expect("open")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(name, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	real := filepath.Join(t.TempDir(), "real")
	if err := os.WriteFile(real, []byte("real\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	given := func() (*os.File, []*os.File) { return open(real, unix.O_PATH), []*os.File{open(real, unix.O_RDONLY)} }

	file, files := given()
	if err := m.FS.Deleted(ctx, "file", file, files); err == nil {
		t.Error("it is done while the gate is open")
	}
	m.shutGate()
	file, files = given()
	if err := m.FS.Deleted(ctx, "none", file, files); err != nil {
		t.Errorf("of what nobody uses: %v", err)
	}
	file, files = given()
	if err := m.FS.Deleted(ctx, "file", file, files); err != nil {
		t.Fatal(err)
	}
	// Nobody is asked for this.
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", p.pid())); err != nil || link != m.path("file")+" (deleted)" {
		t.Errorf("it is open as %q, %v", link, err)
	}
	if _, err := fmt.Fprintln(p.in, "go"); err != nil {
		t.Fatal(err)
	}
	m.waitHeld("the program", of(p.pid(), ""))
	m.open()
	p.expect("real")
	p.succeed()
	m.cat("file", "made up")
	m.cat("other", "another")
}
