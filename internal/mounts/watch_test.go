package mounts

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"
)

// tableOf returns what w has of a namespace, or nil.
func (w *Watch) tableOf(inode uint64) Table {
	for _, s := range w.Spaces() {
		if s.Namespace.Inode == inode && s.Err == nil {
			return s.Table
		}
	}
	return nil
}

func TestWatchSeesWhatChanges(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	first := holder(t, unix.MS_PRIVATE)
	w, err := NewWatch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	refresh := func() {
		t.Helper()
		if err := w.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
	}
	ours := own(t).Inode
	if w.Spaces()[0].Namespace.Inode != ours {
		t.Error("the first is not our own")
	}
	spaces := len(w.Spaces())
	before, others := w.tableOf(ours), w.tableOf(first.Inode)
	if before == nil || others == nil {
		t.Fatal("a namespace is missing")
	}
	refresh()
	if &w.tableOf(ours)[0] != &before[0] || len(w.Spaces()) != spaces {
		t.Error("nothing has changed, and a table was read again")
	}

	tmpfs(t, dir+"/one", "one")
	refresh()
	m := w.tableOf(ours).Top(dir + "/one")
	if m == nil {
		t.Fatal("a new mount is not seen")
	}
	if &w.tableOf(first.Inode)[0] != &others[0] {
		t.Error("the table of another namespace was read again")
	}
	if err := unix.Mount("", dir+"/one", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refresh()
	if m := w.tableOf(ours).Top(dir + "/one"); m == nil || !m.HasOption("ro") {
		t.Error("other options of a mount are not seen")
	}
	if err := unix.Unmount(dir+"/one", 0); err != nil {
		t.Fatal(err)
	}
	refresh()
	if w.tableOf(ours).Top(dir+"/one") != nil {
		t.Error("a mount that is gone is still seen")
	}

	second := holder(t, unix.MS_PRIVATE)
	refresh()
	if w.tableOf(second.Inode) == nil {
		t.Error("a new namespace is not seen")
	}
	all, err := List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range all {
		if w.tableOf(ns.Inode) == nil {
			t.Errorf("%v is not seen", ns)
		}
		ns.Close()
	}
}
