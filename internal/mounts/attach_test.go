package mounts

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// clone makes a detached clone of the mount at point.
func clone(t *testing.T, point string) *os.File {
	t.Helper()
	m, err := Lookup(point)
	if err != nil {
		t.Fatal(err)
	}
	root, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	c, err := Clone(root, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func setPropagation(t *testing.T, point string, flag uintptr) {
	t.Helper()
	if err := unix.Mount("", point, "", flag, ""); err != nil {
		t.Fatal(err)
	}
}

// TestAttachChangesOneMountInEachNamespace is the rule whatever the parent
// propagates to: after attaching a clone in every namespace, each has exactly
// one mount there, and it is the clone that was meant for it.
func TestAttachChangesOneMountInEachNamespace(t *testing.T) {
	for name, c := range map[string]struct{ parent, others uintptr }{
		"private parent":       {unix.MS_PRIVATE, 0},
		"shared, one alone":    {unix.MS_SHARED, unix.MS_PRIVATE},
		"peers":                {unix.MS_SHARED, 0},
		"slaves of the parent": {unix.MS_SHARED, unix.MS_SLAVE},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tmpfs(t, dir+"/parent", "parent")
			setPropagation(t, dir+"/parent", c.parent)
			tmpfs(t, dir+"/parent/at", "old")
			tmpfs(t, dir+"/new", "new")
			point := dir + "/parent/at"
			all := []*Namespace{own(t), holder(t, c.others), holder(t, c.others)}
			before := map[*Namespace]*Mount{}
			for _, ns := range all {
				before[ns] = at(t, ns, dir+"/parent")[0]
			}
			for _, ns := range all {
				old := at(t, ns, point)
				if len(old) != 1 {
					t.Fatalf("%d mounts at the start in %v", len(old), ns)
				}
				new := clone(t, dir+"/new")
				if err := SetOptions(new, old[0].Options); err != nil {
					t.Fatal(err)
				}
				if err := ns.Attach(new, old[0]); err != nil {
					t.Fatal(err)
				}
				want, err := mountID(int(new.Fd()))
				if err != nil {
					t.Fatal(err)
				}
				got := at(t, ns, point)
				if len(got) != 1 || got[0].ID != want {
					t.Fatalf("in %v are %d mounts, the first is %d, want 1 that is %d", ns, len(got), got[0].ID, want)
				}
				if got[0].Options != old[0].Options || (got[0].Shared != 0) != (old[0].Shared != 0) {
					t.Errorf("options %q shared %d, want as of %q %d", got[0].Options, got[0].Shared, old[0].Options, old[0].Shared)
				}
				err = ns.Do(func(*os.File) error {
					text, err := os.ReadFile(point + "/name")
					if string(text) != "new" {
						t.Errorf("%v shows %q", ns, text)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
			for _, ns := range all {
				if n := len(at(t, ns, point)); n != 1 {
					t.Errorf("%d mounts at the end in %v, want 1", n, ns)
				}
				now := at(t, ns, dir+"/parent")[0]
				if now.Shared != before[ns].Shared || now.Master != before[ns].Master {
					t.Errorf("parent in %v: shared %d master %d, want %d %d", ns, now.Shared, now.Master, before[ns].Shared, before[ns].Master)
				}
			}
		})
	}
}

func TestAttachRefusesWhenAnotherMountIsOnTop(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/at", "old")
	tmpfs(t, dir+"/new", "new")
	ns := own(t)
	old := at(t, ns, dir+"/at")[0]
	tmpfs(t, dir+"/at", "over")
	if err := ns.Attach(clone(t, dir+"/new"), old); err == nil {
		t.Error("attached beneath a mount that is covered")
	}
	if n := len(at(t, ns, dir+"/at")); n != 2 {
		t.Errorf("%d mounts after a refusal, want 2", n)
	}
}

func TestWalkerNeverFindsTheMountPointBare(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/a", "a")
	tmpfs(t, dir+"/at", "a")
	ns := own(t)
	stop, missing := make(chan struct{}), make(chan int)
	started := make(chan struct{})
	go func() {
		n := 0
		close(started)
		for {
			select {
			case <-stop:
				missing <- n
				return
			default:
			}
			if _, err := os.ReadFile(dir + "/at/name"); err != nil {
				n++
			}
		}
	}()
	<-started
	for range 100 {
		if err := ns.Attach(clone(t, dir+"/a"), at(t, ns, dir+"/at")[0]); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if n := <-missing; n != 0 {
		t.Errorf("a walker found no mount %d times", n)
	}
}

func TestDetachIsNotPropagated(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/parent", "parent")
	setPropagation(t, dir+"/parent", unix.MS_SHARED)
	tmpfs(t, dir+"/parent/at", "old")
	here, there := own(t), holder(t, 0)
	if err := here.Detach(at(t, here, dir+"/parent/at")[0]); err != nil {
		t.Fatal(err)
	}
	if a, b := len(at(t, here, dir+"/parent/at")), len(at(t, there, dir+"/parent/at")); a != 0 || b != 1 {
		t.Errorf("%d mounts here and %d there, want 0 and 1", a, b)
	}
}

func TestSetOptionsReplacesAll(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/new", "new")
	ns := own(t)
	for _, options := range []string{
		"rw,relatime", "ro,nosuid,nodev,noexec,noatime", "rw", "rw,nodiratime,relatime", "rw,relatime,nosymfollow",
	} {
		tmpfs(t, dir+"/at", "old")
		c := clone(t, dir+"/new")
		if err := SetOptions(c, "ro,nosuid,noatime"); err != nil {
			t.Fatal(err)
		}
		if err := SetOptions(c, options); err != nil {
			t.Fatal(err)
		}
		if err := ns.Attach(c, at(t, ns, dir+"/at")[0]); err != nil {
			t.Fatal(err)
		}
		if got := at(t, ns, dir+"/at")[0].Options; got != options {
			t.Errorf("options %q, want %q", got, options)
		}
		unix.Unmount(dir+"/at", unix.MNT_DETACH)
	}
	if err := SetOptions(clone(t, dir+"/new"), "rw,idmapped"); err == nil {
		t.Error("idmapped was taken over")
	}
}

func TestCloneOfPartStaysInside(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/new", "new")
	for _, d := range []string{"/sub/in ner", "/other"} {
		if err := os.MkdirAll(dir+"/new"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", dir+"/new/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub", dir+"/new/rel"); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, dir+"/new/other", "another")
	m, err := Lookup(dir + "/new")
	if err != nil {
		t.Fatal(err)
	}
	root, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]bool{
		"sub": true, "sub/in ner": true, "/sub": true, "name": true,
		"link": false, "rel/in ner": false, "../..": true, "nothing": false, "other/name": false,
	} {
		c, err := Clone(root, path)
		if (err == nil) != want {
			// ".." at the root stays there, as in a chroot.
			t.Errorf("clone of %q: %v", path, err)
		}
		if err == nil {
			if _, err := mountID(int(c.Fd())); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}
}
