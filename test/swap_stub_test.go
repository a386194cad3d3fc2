package test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// toStub makes a bindfs at new, and SPFS at old as a proxy of the same
// directory: what a restore starts from.
func toStub(t *testing.T) *mounts {
	t.Helper()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	rig.Mount(t, m.old, "--mode", "proxy", "--dir", m.data)
	rig.Bindfs(t, m.data, m.new)
	m.note(t)
	return m
}

func TestSwapOfAProcessThatWaitsInAStub(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending{
		"open": func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending {
			return p.Start(unix.SYS_OPENAT, unix.AT_FDCWD, m.old+"/other", unix.O_RDONLY, 0)
		},
		"read": func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending {
			return p.Start(unix.SYS_PREAD64, fd, make([]byte, 5), 5, 8*page)
		},
		"write": func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending {
			return p.Start(unix.SYS_PWRITE64, fd, []byte("hello"), 5, 100)
		},
		"stat": func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending {
			return p.Start(unix.SYS_STATX, unix.AT_FDCWD, m.old+"/other", 0, unix.STATX_BASIC_STATS, make([]byte, 256))
		},
		"page fault": func(m *mounts, p *rig.Puppet, fd int, addr uint64) *rig.Pending {
			return p.StartLoad(addr+8*page, 10)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := toStub(t)
			m.put(t, "f", pages(16))
			m.put(t, "other", "other")
			p := rig.StartPuppet(t)
			fd := p.Open(m.old+"/f", unix.O_RDWR)
			addr := p.Mmap(fd, 16*page, unix.PROT_READ, unix.MAP_SHARED)
			rig.SPFS(t, "mode", m.old, "stub").OK(t)
			call := start(m, p, fd, addr)
			rig.AwaitHeld(t, m.old, 1)

			if r := m.swap(t); r.Processes != 1 {
				t.Errorf("reported %d processes, want 1", r.Processes)
			}
			if ret, err := call.Wait(); err != nil {
				t.Errorf("the call that waited: %d, %v", ret, err)
			}
			m.moved(t, p, fd, "f")
			if got := string(p.Load(addr+8*page, 3)); got != "iii" {
				t.Errorf("the mapping holds %q", got)
			}
		})
	}
}

func TestSwapOfACounterThatWaitsInAStub(t *testing.T) {
	t.Parallel()
	m := toStub(t)
	c := rig.StartCounter(t, m.old, rig.CounterOptions{FDs: 3, Threads: 1, Children: 1})
	stub := rig.StatusOf(t, m.old).PID
	rig.SPFS(t, "mode", m.old, "stub").OK(t)
	rig.AwaitHeld(t, m.old, 3)
	c.Stands(50 * time.Millisecond)

	m.swap(t)
	c.CountsOn(100)
	c.Check()
	rig.Await(t, 10*time.Second, func() bool { return !rig.Alive(stub) }, "the end of the stub that nobody has mounted")
	c.End(m.data)
}

// The new file system need not be the kind that the old one was.
func TestSwapBetweenKinds(t *testing.T) {
	t.Parallel()
	ssh := rig.StartSSH(t)
	serve := map[string]func(data, at string) *rig.Daemon{
		"bindfs":   func(data, at string) *rig.Daemon { return rig.Bindfs(t, data, at) },
		"sshfs":    func(data, at string) *rig.Daemon { return ssh.Sshfs(t, data, at) },
		"loopback": func(data, at string) *rig.Daemon { return rig.Loopback(t, data, at) },
	}
	for _, way := range []string{"bindfs sshfs", "sshfs bindfs", "bindfs loopback", "loopback sshfs", "sshfs sshfs"} {
		from, to, _ := strings.Cut(way, " ")
		t.Run(from+" to "+to, func(t *testing.T) {
			top := rig.Dir(t)
			m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
			old := serve[from](m.data, m.old)
			t.Cleanup(old.Kill)
			t.Cleanup(serve[to](m.data, m.new).Kill)
			m.note(t)
			c := rig.StartCounter(t, m.old, rig.CounterOptions{FDs: 5, Threads: 1, Children: 1})
			c.CountsOn(50)

			m.swap(t)
			c.CountsOn(50)
			// Nothing holds the old one any more: its daemon sees its end.
			select {
			case <-old.Ended():
			case <-time.After(10 * time.Second):
				t.Error("the old daemon still serves somebody")
			}
			c.Check()
			c.End(m.data)
			rig.Unmount(t, m.old)
			rig.Unmount(t, m.new)
		})
	}
}

// list and plan ask the mount nothing, whatever state it is in.
func TestListOfAMountThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, silence := range map[string]func(t *testing.T, m *mounts){
		"dead": func(t *testing.T, m *mounts) { m.oldProc.Kill() },
		"stopped": func(t *testing.T, m *mounts) {
			if err := unix.Kill(m.oldProc.PID, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			// A process that ends closes its files, for which it waits.
			t.Cleanup(func() { unix.Kill(m.oldProc.PID, unix.SIGCONT) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "dir/f", "x")
			p := rig.StartPuppet(t)
			fd := p.Open(m.old+"/dir/f", unix.O_RDONLY)
			p.Chdir(m.old + "/dir")
			silence(t, m)
			listed(t, m.old, p.PID, fd, "dir/f")
		})
	}
	t.Run("stub", func(t *testing.T) {
		t.Parallel()
		m := toStub(t)
		m.put(t, "dir/f", "x")
		p := rig.StartPuppet(t)
		fd := p.Open(m.old+"/dir/f", unix.O_RDONLY)
		p.Chdir(m.old + "/dir")
		rig.SPFS(t, "mode", m.old, "stub").OK(t)
		listed(t, m.old, p.PID, fd, "dir/f")
	})
}

// listed checks that spfs-swap list names a process and what it holds, soon.
func listed(t *testing.T, mountpoint string, pid, fd int, name string) {
	t.Helper()
	for _, args := range [][]string{{"list", mountpoint}, {"list", "--json", mountpoint}} {
		r := rig.Run(t, rig.Build(t).Swap, args...).OK(t)
		if r.Took > 5*time.Second {
			t.Errorf("%s took %v", r.Line(), r.Took)
		}
		for _, want := range []string{itoa(pid), "puppet", itoa(fd), filepath.Base(name)} {
			if !strings.Contains(r.Stdout, want) {
				t.Errorf("%s does not say %q:\n%s", r.Line(), want, r.Stdout)
			}
		}
	}
}
