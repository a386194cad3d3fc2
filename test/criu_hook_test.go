package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spfs/test/rig"
)

// What the hook can't do is said in CRIU's log, and CRIU fails.
func TestHookRefuses(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	manifest := filepath.Join(images, "spfs.manifest")
	whole, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		manifest []byte
		external string
		says     string
	}{
		{whole, "mnt[other]:/tmp", "--external 'mnt[spfs-0]:DIR'"},
		{whole, "mnt[spfs-0]:/nonexistent/dir", "/nonexistent/dir"},
		{changed(whole), "mnt[spfs-0]:" + rig.Mkdir(t, rig.Dir(t), "stub"), "damaged"},
	} {
		if err := os.WriteFile(manifest, bad.manifest, 0o600); err != nil {
			t.Fatal(err)
		}
		r := criu(t, images, nil, "restore", "-d", "-o", "restore.log", "--external", bad.external, "--root", c.Root)
		log, err := os.ReadFile(filepath.Join(images, "restore.log"))
		if r.Status == 0 || err != nil || !strings.Contains(string(log), bad.says) {
			t.Errorf("%s: exit status %d, log without %q (%v)", bad.external, r.Status, bad.says, err)
		}
		c.NotRunning()
		if left, _ := filepath.Glob("/run/spfs/*"); len(left) != 0 {
			t.Errorf("%s: left %v", bad.external, left)
		}
	}
	rig.SPFS(t, "hook").Fails(t, 1, "CRTOOLS_SCRIPT_ACTION")
	rig.SPFS(t, "hook", "word").Fails(t, 2, "no arguments")
}

// A tree in the machine's own mount namespace, of several processes.
func TestCheckpointWithoutAMountNamespace(t *testing.T) {
	top := rig.Dir(t)
	data, mnt := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
	rig.Write(t, data+"/sub/f", "")
	daemon := rig.Bindfs(t, data, mnt)
	size := func() int64 {
		st, err := os.Stat(data + "/sub/f")
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	grows := func() {
		t.Helper()
		at := size()
		rig.Await(t, 20*time.Second, func() bool { return size() > at+5 }, "a write to %s/sub/f", mnt)
	}
	// Only what it opens itself: what it had from here CRIU would not dump.
	r := rig.Begin(t, exec.Command("setsid", "-w", "bash", "-c", `cd "$0/sub" && exec 3>>f </dev/null >/dev/null 2>&1 &&
		for fd in /proc/self/fd/*; do n=${fd##*/}; case $n in [0-3]) ;; *) eval "exec $n>&-" ;; esac; done
		while :; do echo x >&3; sleep 0.01; done`, mnt))
	grows()
	root := r.PID
	t.Cleanup(func() { rig.Kill(t, rig.Tree(root)...) })

	images := rig.Mkdir(t, top, "images")
	spfs := func(args ...string) rig.Result { return rig.SPFS(t, append(args, "--criu", rig.Build(t).CRIU)...) }
	spfs("dump", "--tree", itoa(root), "--images-dir", images).OK(t)
	rig.Unmount(t, mnt)
	daemon.Kill()
	at := size()

	spfs("restore", "--images-dir", images, "--detach", "--mount", mnt+"="+rig.BindfsCommand(data)).OK(t)
	if size() < at {
		t.Errorf("the file shrank from %d to %d bytes", at, size())
	}
	grows()
	if m := rig.MountAt(t, 0, mnt); m == nil || m.FSType != "fuse" {
		t.Errorf("at %s is %+v, want bindfs", mnt, m)
	}
	if left, _ := filepath.Glob("/run/spfs/*"); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	rig.Kill(t, rig.Tree(root)...)
	rig.Unmount(t, mnt)
}

// CRIU tells its hook nothing when it fails; what the hook made goes all the same.
func TestHookOfARestoreThatFails(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	at := rig.Mkdir(t, rig.Dir(t), "stub")
	r := criu(t, images, nil, "restore", "-d", "-o", "restore.log", "--external", "mnt[spfs-0]:"+at, "--root", c.Root+"/none")
	if r.Status == 0 {
		t.Error("a restore onto a root that is not there succeeds")
	}
	rig.Await(t, 10*time.Second, func() bool {
		left, err := filepath.Glob("/run/spfs/*")
		return err == nil && len(left) == 0 && rig.MountAt(t, 0, at) == nil
	}, "the end of what the hook made")
}
