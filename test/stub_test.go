package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// stubOf makes a directory and a stub.
func stubOf(t *testing.T) (data, mnt string) {
	t.Helper()
	top := rig.Dir(t)
	data, mnt = rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
	if s := rig.Mount(t, mnt); s.Mode != "stub" || s.Mountpoint != mnt || len(s.Held) != 0 {
		t.Fatalf("a new mount is %+v", s)
	}
	return data, mnt
}

func TestStubHoldsUntilItIsAProxy(t *testing.T) {
	t.Parallel()
	data, mnt := stubOf(t)
	rig.Write(t, data+"/f", "content")
	p := rig.StartPuppet(t)
	call := p.Start(unix.SYS_OPENAT, unix.AT_FDCWD, mnt+"/f", unix.O_RDONLY, 0)
	held := rig.AwaitHeld(t, mnt, 1)
	if h := held[0]; h.PID != p.PID || h.Comm != "puppet" || h.Op == "" || time.Since(h.Since) > time.Minute {
		t.Errorf("held: %+v, want one of puppet %d", h, p.PID)
	}
	text := rig.SPFS(t, "status", mnt).OK(t).Stdout
	for _, want := range []string{mnt, "stub", itoa(p.PID), "puppet"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
	if call.Done() {
		t.Fatal("the call has returned")
	}

	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	fd, err := call.Wait()
	if err != nil {
		t.Fatalf("the call that waited: %v", err)
	}
	if got := p.Read(int(fd), 100); got != "content" {
		t.Errorf("read %q", got)
	}
	if s := rig.StatusOf(t, mnt); s.Mode != "proxy" || s.Dir != data || len(s.Held) != 0 {
		t.Errorf("status %+v", s)
	}
}

// Only its death ends a process's wait, and what it asked for is not done late.
func TestStubDropsTheRequestsOfTheDead(t *testing.T) {
	t.Parallel()
	data, mnt := stubOf(t)
	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	p := rig.StartPuppet(t)
	doomed, stays := p.Spawn(fork), p.Spawn(fork)
	p.Chdir(mnt)
	rig.SPFS(t, "mode", mnt, "stub").OK(t)
	doomed.Start(unix.SYS_MKDIRAT, unix.AT_FDCWD, mnt+"/of-the-dead", 0o755)
	call := stays.Start(unix.SYS_MKDIRAT, unix.AT_FDCWD, mnt+"/of-the-living", 0o755)
	rig.AwaitHeld(t, mnt, 2)

	// A signal that does not kill ends no wait.
	if err := unix.Kill(stays.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	rig.Kill(t, doomed.PID)
	rig.AwaitHeld(t, mnt, 1)
	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	if _, err := call.Wait(); err != nil {
		t.Errorf("the call of the living: %v", err)
	}
	if _, err := os.Stat(data + "/of-the-living"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(data + "/of-the-dead"); err == nil {
		t.Error("what the dead process asked for was done")
	}
}

func TestCounterThroughAProxyThatOpensAndShuts(t *testing.T) {
	t.Parallel()
	data, mnt := stubOf(t)
	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	c := rig.StartCounter(t, mnt, rig.CounterOptions{FDs: 5, Threads: 1, Children: 1})
	pid := rig.StatusOf(t, mnt).PID
	fds := rig.CountFDs(t, pid)
	for range 50 {
		c.CountsOn(5)
		rig.SPFS(t, "mode", mnt, "stub").OK(t)
		rig.AwaitHeld(t, mnt, 3)
		at := c.Count()
		if s := rig.StatusOf(t, mnt); s.Mode != "stub" {
			t.Fatalf("mode %s after shutting", s.Mode)
		}
		if got := c.Count(); got != at {
			t.Errorf("counted from %d to %d with the gate shut", at, got)
		}
		rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	}
	c.Check()
	rig.Await(t, 10*time.Second, func() bool { return rig.CountFDs(t, pid) <= fds+2 },
		"the daemon has about %d descriptors", fds)
	c.End(data)
}

// Files that are open go over to the next directory by name.
func TestProxyGoesOverToAnotherDirectory(t *testing.T) {
	t.Parallel()
	data, mnt := stubOf(t)
	next := rig.Mkdir(t, filepath.Dir(data), "next")
	rig.Write(t, data+"/both", "one")
	rig.Write(t, next+"/both", "two")
	rig.Write(t, data+"/gone", "one")
	rig.Write(t, data+"/other", "one")
	rig.Mkdir(t, next, "other")
	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	p := rig.StartPuppet(t)
	both, gone, other := p.Open(mnt+"/both", unix.O_RDONLY), p.Open(mnt+"/gone", unix.O_RDONLY), p.Open(mnt+"/other", unix.O_RDONLY)
	if got := p.Read(both, 1); got != "o" {
		t.Fatalf("read %q", got)
	}

	rig.SPFS(t, "mode", mnt, "proxy", "--dir", next).OK(t)
	if got := p.Read(both, 10); got != "wo" {
		t.Errorf("reads on with %q, want that of the next directory", got)
	}
	for name, fd := range map[string]int{"gone": gone, "other": other} {
		if _, err := p.Call(unix.SYS_READ, fd, make([]byte, 10), 10); err != unix.ESTALE {
			t.Errorf("read of %s: %v, want ESTALE", name, err)
		}
	}
}

func TestUmount(t *testing.T) {
	t.Parallel()
	data, mnt := stubOf(t)
	rig.SPFS(t, "mode", mnt, "proxy", "--dir", data).OK(t)
	before := rig.StatusOf(t, mnt)
	p := rig.StartPuppet(t)
	p.Chdir(mnt)
	rig.SPFS(t, "umount", mnt).Fails(t, 1, mnt)
	if s := rig.StatusOf(t, mnt); s.Mode != "proxy" {
		t.Errorf("after a umount that failed it is a %s", s.Mode)
	}
	p.Chdir("/")
	rig.SPFS(t, "umount", mnt).OK(t)
	if rig.MountAt(t, 0, mnt) != nil {
		t.Error("still mounted")
	}
	rig.Await(t, 10*time.Second, func() bool { return !rig.Alive(before.PID) }, "the daemon's end")
	if _, err := os.Stat("/run/spfs/" + before.Device + ".sock"); err == nil {
		t.Error("a socket is left")
	}
}

func TestMountBadInput(t *testing.T) {
	t.Parallel()
	top := rig.Dir(t)
	rig.Write(t, top+"/file", "x")
	data, mnt := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
	plain := rig.Mkdir(t, top, "plain")
	foreign := rig.Mkdir(t, top, "foreign")
	rig.Bindfs(t, data, foreign)
	rig.Mount(t, mnt, "--mode", "proxy", "--dir", data)
	before := rig.Statuses(t)
	for _, c := range []struct {
		args   string
		status int
		names  string
	}{
		{"mount", 2, "MOUNTPOINT"},
		{"mount --mode other %/plain", 2, "other"},
		{"mount --mode proxy %/plain", 2, "--dir"},
		{"mount --mode proxy --dir %/none %/plain", 1, "%/none"},
		{"mount --mode proxy --dir %/file %/plain", 1, "%/file"},
		{"mount %/none", 1, "%/none"},
		{"mount %/file", 1, "%/file"},
		{"mount %/mnt", 3, "%/mnt"},
		{"mount %/foreign", 3, "%/foreign"},
		{"mode %/mnt", 2, ""},
		{"mode %/mnt other", 2, "other"},
		{"mode %/mnt proxy", 2, "--dir"},
		{"mode %/mnt proxy --dir %/none", 1, "%/none"},
		{"mode %/mnt proxy --dir %/file", 1, "%/file"},
		{"mode %/plain stub", 1, "%/plain"},
		{"mode %/none stub", 1, "%/none"},
		{"mode %/foreign stub", 1, "%/foreign"},
		{"status %/plain", 1, "%/plain"},
		{"status %/foreign", 1, "%/foreign"},
		{"umount %/plain", 1, "%/plain"},
		{"umount %/foreign", 1, "%/foreign"},
		{"umount", 2, "MOUNTPOINT"},
		{"nonsense", 2, "nonsense"},
		{"mount --nonsense", 2, "nonsense"},
	} {
		fill := func(s string) string { return strings.ReplaceAll(s, "%", top) }
		rig.SPFS(t, strings.Fields(fill(c.args))...).Fails(t, c.status, fill(c.names))
	}
	if rig.MountAt(t, 0, plain) != nil {
		t.Error("something is mounted")
	}
	after := rig.StatusOf(t, mnt)
	for _, b := range before {
		if b.Mountpoint == mnt && (b.Mode != after.Mode || b.Dir != after.Dir || b.PID != after.PID) {
			t.Errorf("the mount was %+v and is %+v", b, after)
		}
	}
}
