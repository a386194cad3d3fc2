package swap

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// freeze stops a puppet, without its help to wake up again, and says so to a
// plan.
func freeze(t *testing.T, plan *Plan, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	rig.Await(t, 10*time.Second, func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		stat, err := parseStat(text)
		return err == nil && stat.state == 'T'
	}, "process %d does not stop", pid)
	if plan.Stopped == nil {
		plan.Stopped = map[int]bool{}
	}
	plan.Stopped[pid] = true
}

func refresh(t *testing.T, plan *Plan) {
	t.Helper()
	if err := plan.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestRefreshReadsWhatStoppedProcessesShare(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	p := rig.StartPuppet(t)
	own := p.Open(m.old+"/file", unix.O_RDWR)
	alone := rig.StartPuppet(t)
	other := alone.Open(m.old+"/file", unix.O_RDWR)
	alone.Mmap(other, pageSize, unix.PROT_READ, unix.MAP_SHARED)
	alone.Chdir(m.old)
	child := p.Spawn(int(unix.SIGCHLD))
	plan := m.plan(t, Scope{})
	freeze(t, plan, p.PID)
	freeze(t, plan, alone.PID)
	refresh(t, plan)
	if plan.known.still[p.PID] != nil {
		t.Error("what a process shares with one that runs is taken as final")
	}
	if plan.known.still[alone.PID] == nil {
		t.Error("what a stopped process has for itself is not taken as final")
	}
	before := plan.Usage
	child.Seek(own, 5, unix.SEEK_SET)
	refresh(t, plan)
	if d := plan.Usage.fd(t, p.PID, own).Description; d.Pos != 5 {
		t.Errorf("another process moved the shared position to 5, and found is %d", d.Pos)
	}
	u := plan.Usage
	a, b := before.fd(t, alone.PID, other).Description, u.fd(t, alone.PID, other).Description
	if a.Replacement != b.Replacement || b.Mount != u.Mounts[0] {
		t.Error("the replacement or the mount of what was not read again is another one")
	}
	if len(u.Spaces) != 1 || len(u.Contexts) != 1 || u.Spaces[0].Mappings[0].Mount != u.Mounts[0] || u.Contexts[0].Cwd.Replacement == nil {
		t.Error("mappings or directories of what was not read again are missing")
	}
	// It ends: nothing of it may be left.
	rig.Kill(t, alone.PID)
	refresh(t, plan)
	if n := len(plan.Usage.Spaces); n != 0 {
		t.Errorf("a process has ended, and %d of its address spaces are found", n)
	}
}

// TestRefreshLooksIntoQueues sends a descriptor to a process that is stopped.
func TestRefreshLooksIntoQueues(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "x")
	p := rig.StartPuppet(t)
	pair := make([]byte, 8)
	p.Must(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, pair)
	sender := p.Spawn(int(unix.SIGCHLD))
	p.Open(m.old+"/file", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	freeze(t, plan, p.PID)
	refresh(t, plan)
	if plan.known.still[p.PID] == nil {
		t.Fatal("what a stopped process has for itself is not taken as final")
	}
	null := sender.Open("/dev/null", unix.O_RDONLY)
	sendFD(t, sender, int(pair[0]), null)
	if err := plan.Refresh(context.Background()); err == nil || !strings.Contains(err.Error(), "in flight") {
		t.Errorf("a descriptor is in flight to a stopped process: %v", err)
	}
}

// TestRefreshDropsStalePages writes through the old mount what somebody has
// read through the new one: no size differs.
func TestRefreshDropsStalePages(t *testing.T) {
	for _, mapped := range []bool{false, true} {
		t.Run(fmt.Sprintf("mapped %v", mapped), func(t *testing.T) {
			dir := rig.Dir(t)
			m := &twoMounts{old: rig.Mkdir(t, dir, "old"), new: rig.Mkdir(t, dir, "new")}
			m.data = rig.Mkdir(t, dir, "data")
			rig.Bindfs(t, m.data, m.old)
			rig.Bindfs(t, m.data, m.new)
			rig.Write(t, m.data+"/file", strings.Repeat("old.", pageSize/4))
			p, reader := rig.StartPuppet(t), rig.StartPuppet(t)
			fd := p.Open(m.old+"/file", unix.O_RDWR)
			plan := m.plan(t, Scope{})
			if err := plan.Err(); err != nil {
				t.Fatal(err)
			}
			read := reader.Open(m.new+"/file", unix.O_RDONLY)
			reader.Read(read, pageSize)
			if mapped {
				reader.Load(reader.Mmap(read, pageSize, unix.PROT_READ, unix.MAP_SHARED), 1)
			}
			p.Write(fd, "new.")
			refresh(t, plan)
			got := make([]byte, 4)
			d := plan.Usage.fd(t, p.PID, fd).Description
			if _, err := unix.Pread(int(d.Replacement.Fd()), got, 0); err != nil {
				t.Fatal(err)
			}
			if string(got) != "new." {
				t.Errorf("the replacement reads %q, want %q", got, "new.")
			}
		})
	}
}

// TestRefreshIsFast compares what has to be done while everybody is stopped
// with the least that anybody could do: reading the kernel's description of
// every descriptor and of all memory of the test's processes once, one after
// the other. Both are measured alternately, so that both have the same machine.
func TestRefreshIsFast(t *testing.T) {
	const most = 3 // what is usual is less than 1: it uses all processors
	for _, c := range []struct{ processes, fds int }{{1, 1000}, {100, 10}} {
		t.Run(fmt.Sprintf("%dx%d", c.processes, c.fds), func(t *testing.T) {
			m := newTwoMounts(t)
			for i := range c.fds {
				m.write(t, fmt.Sprint(i), "x")
			}
			first := rig.StartPuppet(t)
			users := []*rig.Puppet{first}
			for len(users) < c.processes {
				users = append(users, first.Spawn(int(unix.SIGCHLD)))
			}
			for _, p := range users {
				for j := range c.fds {
					p.Open(filepath.Join(m.old, fmt.Sprint(j)), unix.O_RDWR)
				}
			}
			plan := m.plan(t, Scope{})
			if err := plan.Err(); err != nil {
				t.Fatal(err)
			}
			took, least := time.Hour, time.Hour
			for range 7 {
				begin := time.Now()
				readTree(t, os.Getpid())
				least = min(least, time.Since(begin))
				begin = time.Now()
				refresh(t, plan)
				took = min(took, time.Since(begin))
			}
			for _, p := range users {
				freeze(t, plan, p.TID())
			}
			again := time.Hour
			for range 7 {
				begin := time.Now()
				refresh(t, plan)
				again = min(again, time.Since(begin))
			}
			t.Logf("refresh %v, of stopped processes %v; reading alone %v", took, again, least)
			if took > most*least {
				t.Errorf("refresh took %v, want at most %d times %v", took, most, least)
			}
			if again > most*least {
				t.Errorf("refresh of what is stopped took %v, want at most %d times %v", again, most, least)
			}
		})
	}
}

// readTree reads fdinfo, links and maps of all descendants of a process.
func readTree(t *testing.T, root int) {
	t.Helper()
	small, large := make([]byte, 4096), make([]byte, 64<<10)
	for _, pid := range rig.Tree(root) {
		if pid == root {
			continue
		}
		dir, err := openProcDir(fmt.Sprintf("/proc/%d", pid))
		if err != nil {
			continue
		}
		fds, err := dir.numbers("fd", large)
		if err != nil {
			t.Error(err)
		}
		for _, fd := range fds {
			dir.record(fmt.Sprintf("fdinfo/%d", fd), small)
			dir.link(fmt.Sprintf("fd/%d", fd))
		}
		dir.read("maps", large)
		dir.close()
	}
}
