package test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

func timespec(d time.Duration) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(d/time.Second))
	return binary.NativeEndian.AppendUint64(b, uint64(d%time.Second))
}

func pollfd(fd int, events uint16) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(fd))
	return append(binary.NativeEndian.AppendUint16(b, events), 0, 0)
}

// A task in a system call goes on with it as if nothing had been: none of
// these may end early, late, or with an error that it would not have had.
func TestSwapOfTasksInSystemCalls(t *testing.T) {
	t.Parallel()
	const nap = 1500 * time.Millisecond
	for _, c := range []struct {
		name string
		// begin starts the call in p; end makes it end, nil if it does by itself.
		begin func(p *rig.Puppet) (call *rig.Pending, end func(other *rig.Puppet))
		want  int64
	}{
		{"nanosleep", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			return p.Start(unix.SYS_NANOSLEEP, timespec(nap), 0), nil
		}, 0},
		{"clock_nanosleep", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			return p.Start(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, timespec(nap), 0), nil
		}, 0},
		{"poll that times out", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			r, _ := p.Pipe()
			return startPoll(p, pollfd(r, unix.POLLIN), nap), nil
		}, 0},
		{"poll", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			r, w := p.Pipe()
			return startPoll(p, pollfd(r, unix.POLLIN), -1), func(other *rig.Puppet) { other.Write(w, "x") }
		}, 1},
		{"epoll_wait", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			r, w := p.Pipe()
			ep := p.Must(unix.SYS_EPOLL_CREATE1, 0)
			p.Must(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, r, append(pollfd(unix.POLLIN, 0), 0, 0, 0, 0))
			return p.Start(unix.SYS_EPOLL_PWAIT, ep, make([]byte, 12), 1, -1, 0, 8), func(other *rig.Puppet) { other.Write(w, "x") }
		}, 1},
		{"read of a pipe", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			r, w := p.Pipe()
			return p.Start(unix.SYS_READ, r, make([]byte, 10), 10), func(other *rig.Puppet) { other.Write(w, "xyz") }
		}, 3},
		{"futex", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			word := uint64(p.Must(unix.SYS_MMAP, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0))
			return p.Start(unix.SYS_FUTEX, word, 0, 0, 0), func(other *rig.Puppet) { other.Must(unix.SYS_FUTEX, word, 1, 1) }
		}, 0},
		{"wait for a child", func(p *rig.Puppet) (*rig.Pending, func(*rig.Puppet)) {
			child := p.Spawn(fork)
			return p.Start(unix.SYS_WAIT4, child.TID(), 0, 0, 0), func(*rig.Puppet) { child.Start(unix.SYS_EXIT, 0) }
		}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "content")
			p := rig.StartPuppet(t)
			fd := p.Open(m.old+"/f", unix.O_RDONLY)
			other := p.Spawn(thread)
			began := time.Now()
			call, end := c.begin(p)
			rig.Await(t, 10*time.Second, func() bool { return rig.State(p.PID) == "S" }, "the puppet is in its call")

			m.swap(t)
			if end != nil {
				time.Sleep(20 * time.Millisecond) // in which a call that was broken off would return
				if call.Done() {
					ret, err := call.Wait()
					t.Fatalf("the call returned before its time: %d, %v", ret, err)
				}
				end(other)
			}
			ret, err := call.Wait()
			if err != nil || (c.want >= 0 && ret != c.want) {
				t.Errorf("the call returned %d, %v, want %d", ret, err, c.want)
			}
			if took := time.Since(began); end == nil && (took < nap || took > nap+10*time.Second) {
				t.Errorf("a call of %v took %v", nap, took)
			}
			m.moved(t, p, fd, "f")
		})
	}
}

func TestSwapOfManyThreads(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	c := rig.StartCounter(t, m.old, rig.CounterOptions{Threads: 7, Children: 2, FDs: 2})
	tasks := 1 + 7 + 2
	for range 5 {
		c.CountsOn(20)
		if r := m.swap(t); r.Processes != 3 || r.Threads != tasks {
			t.Errorf("reported %d processes, %d threads, want 3 and %d", r.Processes, r.Threads, tasks)
		}
		c.CountsOn(20)
		m.restart(t)
	}
	c.Check()
	c.End(m.data)
}

func TestSwapOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	c := rig.StartCounter(t, m.old, rig.CounterOptions{})
	if err := unix.Kill(c.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	rig.Await(t, 10*time.Second, func() bool { return rig.State(c.PID) == "T" }, "the counter is stopped")
	at := c.Count()

	m.swap(t)
	rig.Await(t, 10*time.Second, func() bool { return rig.State(c.PID) == "T" }, "the counter is stopped as it was")
	if got := c.Count(); got != at {
		t.Errorf("it counted from %d to %d though it was stopped", at, got)
	}
	if err := unix.Kill(c.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.CountsOn(100)
	c.Check()
	c.End(m.data)
}

// Signals that come while a process is stopped are delivered after, once.
func TestSwapKeepsSignals(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/f", unix.O_RDONLY)
	blocked := make([]byte, 8)
	blocked[(unix.SIGUSR1-1)/8] = 1 << ((unix.SIGUSR1 - 1) % 8)
	p.Must(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, blocked, 0, 8)
	if err := unix.Kill(p.PID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}

	m.swap(t)
	mask, pending := make([]byte, 8), make([]byte, 8)
	p.Must(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, 0, mask, 8)
	p.Must(unix.SYS_RT_SIGPENDING, pending, 8)
	if string(mask) != string(blocked) {
		t.Errorf("blocked signals %x, want %x", mask, blocked)
	}
	if string(pending) != string(blocked) {
		t.Errorf("pending signals %x, want %x", pending, blocked)
	}
}

func TestSwapOfAnotherUsersProcess(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	rig.Public(t, m.old)
	if err := os.Chown(m.data+"/f", 4242, 4242); err != nil {
		t.Fatal(err)
	}
	p := rig.StartPuppet(t)
	p.Must(unix.SYS_SETRESGID, 4242, 4242, 4242)
	p.Must(unix.SYS_SETRESUID, 4242, 4242, 4242)
	p.Must(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	addr := p.Mmap(fd, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	p.Seek(fd, 3, unix.SEEK_SET)

	m.swap(t)
	m.moved(t, p, fd, "f")
	if got := p.Must(unix.SYS_GETUID); got != 4242 {
		t.Errorf("its uid is %d", got)
	}
	p.Write(fd, "abc")
	p.Store(addr, []byte("ABC"))
	p.Must(unix.SYS_MSYNC, addr, page, unix.MS_SYNC)
	m.holds(t, "f", "ABCabc6789")
}

func TestSwapOfProcessesInNamespaces(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string]uintptr{
		"pid":   unix.CLONE_NEWPID,
		"net":   unix.CLONE_NEWNET,
		"ipc":   unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		"mount": unix.CLONE_NEWNS,
		"user":  unix.CLONE_NEWUSER,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "0123456789")
			p := rig.StartPuppet(t, func(cmd *exec.Cmd) {
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
				if flags == unix.CLONE_NEWUSER {
					same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
					cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = same, same
				}
			})
			fd := p.Open(m.old+"/f", unix.O_RDWR)
			p.Read(fd, 4)
			p.Chdir(m.old)

			m.swap(t)
			m.moved(t, p, fd, "f")
			if got := p.Read(fd, 3); got != "456" {
				t.Errorf("reads on with %q", got)
			}
			if got := p.Getcwd(); got != m.old {
				t.Errorf("cwd %s, want %s", got, m.old)
			}
			if got := devAt(t, p.PID, m.old); got != m.newDev {
				t.Errorf("sees %s at its mount point, want %s", devName(got), devName(m.newDev))
			}
		})
	}
}
