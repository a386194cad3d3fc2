package swap

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// record locks all of a descriptor's file for p; command is F_SETLK or
// F_OFD_SETLK.
func record(p *rig.Puppet, fd, command, kind int) {
	lock := make([]byte, 32) // struct flock
	lock[0] = byte(kind)
	p.Must(unix.SYS_FCNTL, fd, command, lock)
}

func TestLocksThatTheDaemonKeeps(t *testing.T) {
	dir := rig.Dir(t)
	m := &twoMounts{old: rig.Mkdir(t, dir, "old"), new: rig.Mkdir(t, dir, "new"), data: rig.Mkdir(t, dir, "data")}
	m.copy = m.data
	rig.Mount(t, m.old, "--mode", "proxy", "--dir", m.data)
	rig.Bindfs(t, m.data, m.new)
	rig.Write(t, m.data+"/file", "x")
	rig.Write(t, m.data+"/other", "x")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/file", unix.O_RDWR)
	p.Open(m.old+"/file", unix.O_RDONLY)
	p.Open(m.old+"/other", unix.O_WRONLY)
	if err := m.plan(t, Scope{}, AskOld()).Err(); err != nil {
		t.Fatalf("nothing is locked: %v", err)
	}
	for what, command := range map[string]int{"POSIX": unix.F_SETLK, "OFD": unix.F_OFD_SETLK} {
		for name, kind := range map[string]int{"read": unix.F_RDLCK, "write": unix.F_WRLCK} {
			record(p, fd, command, kind)
			if u := findOn(t, m.old, Scope{}); len(u.Obstacles) != 0 {
				t.Fatalf("%s: the kernel knows of the lock, so this tests nothing: %v", what, u.Obstacles)
			}
			plan := m.plan(t, Scope{}, AskOld())
			if len(plan.Obstacles) != 1 || !strings.Contains(plan.Err().Error(), fmt.Sprintf("fd %d → /file: its daemon keeps a lock on it", fd)) {
				t.Errorf("%s %s lock: in the way is %v", what, name, plan.Obstacles)
			}
			// It must still be there, whatever closing the copy did.
			if again := m.plan(t, Scope{}, AskOld()); len(again.Obstacles) != 1 {
				t.Errorf("%s %s lock: gone after it was asked for", what, name)
			}
			record(p, fd, command, unix.F_UNLCK)
		}
	}
	if err := m.plan(t, Scope{}, AskOld()).Err(); err != nil {
		t.Errorf("all is unlocked: %v", err)
	}
}

func TestAskingForLocksEndsWithItsContext(t *testing.T) {
	dir := rig.Dir(t)
	m := &twoMounts{old: rig.Mkdir(t, dir, "old"), new: rig.Mkdir(t, dir, "new"), data: rig.Mkdir(t, dir, "data")}
	daemon := rig.Bindfs(t, m.data, m.old)
	rig.Bindfs(t, m.data, m.new)
	rig.Write(t, m.data+"/file", "x")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/file", unix.O_RDWR)
	plan := m.plan(t, Scope{})
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := plan.askLocks(ctx)
	// Before anything is started: a child would close its copy of what is
	// still being asked, and wait for the daemon in that.
	if err := unix.Kill(daemon.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("the daemon is stopped, and asking it says %v", err)
	}
}
