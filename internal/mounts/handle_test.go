package mounts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenByHandle(t *testing.T) {
	top := t.TempDir()
	data, at := filepath.Join(top, "data"), filepath.Join(top, "at")
	for _, d := range []string{data, data + "/dir", at} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(data+"/dir/file", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("bindfs", data, at).CombinedOutput(); err != nil {
		t.Fatalf("bindfs: %v: %s", err, out)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	names := []string{"/", "/dir", "/dir/file"}
	handles := []Handle{{Type: 0x81, Bytes: "none of it's"}}
	for _, name := range names {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, at+name, 0)
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, Handle{h.Type(), string(h.Bytes())})
	}
	m, err := Lookup(at)
	if err != nil {
		t.Fatal(err)
	}
	found, err := OpenByHandle(m, handles)
	if err != nil {
		t.Fatal(err)
	}
	if found[0].Err == nil {
		t.Errorf("a handle of nothing is %q", found[0].Path)
	}
	for i, name := range names {
		if got := found[i+1]; got.Err != nil || got.Path != name {
			t.Errorf("the handle of %s is %q (%v)", name, got.Path, got.Err)
		} else {
			got.File.Close()
		}
	}
	m.Root = "/dir"
	if _, err := OpenByHandle(m, nil); err == nil || errors.Is(err, ErrNoPath) {
		t.Errorf("a mount of a part: %v", err)
	}
}
