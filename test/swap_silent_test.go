package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// client is a process that uses a mount, and knows what it must see there.
type client struct {
	*rig.Puppet
	use   func()              // once more, checked
	ready func()              // for begin to wait
	begin func() *rig.Pending // the same as a call that may wait; its result is checked by end
	end   func(ret int64, err error)
}

// clients starts n processes that use m.old in different ways.
func clients(t *testing.T, m *mounts, n int) (all []*client) {
	t.Helper()
	for i := range 20 {
		m.put(t, fmt.Sprintf("dir/%02d", i), "x")
	}
	for i := range n {
		name := fmt.Sprintf("f%d", i)
		m.put(t, name, pages(64))
		c := &client{Puppet: rig.StartPuppet(t), ready: func() {}}
		forget := func(fd int) func() {
			return func() { c.Must(unix.SYS_FADVISE64, fd, 0, 0, unix.FADV_DONTNEED) }
		}
		fails := func(what string, got, want any) {
			t.Helper()
			t.Errorf("process %d of kind %d: %s: %v, want %v", c.PID, i%5, what, got, want)
		}
		result := func(what string, want int64) func(int64, error) {
			return func(ret int64, err error) {
				if err != nil || ret != want {
					fails(what, fmt.Sprint(ret, " ", err), want)
				}
			}
		}
		switch i % 5 {
		case 0:
			fd := c.Open(m.old+"/"+name, unix.O_RDONLY)
			c.Seek(fd, 2*page, unix.SEEK_SET)
			c.use = func() {
				if got := c.Read(fd, 3); got != "ccc" {
					fails("read", got, "ccc")
				}
				c.Seek(fd, 2*page, unix.SEEK_SET)
			}
			c.ready = forget(fd)
			c.begin = func() *rig.Pending {
				c.Seek(fd, 47*page, unix.SEEK_SET)
				return c.Start(unix.SYS_READ, fd, make([]byte, 7), 7)
			}
			c.end = func(ret int64, err error) {
				result("read", 7)(ret, err)
				if at := c.Offset(fd); at != 47*page+7 {
					fails("position", at, 47*page+7)
				}
				c.Seek(fd, 2*page, unix.SEEK_SET)
			}
		case 1:
			fd := c.Open(m.old+"/"+name, unix.O_WRONLY|unix.O_APPEND)
			c.use = func() { c.Write(fd, "more") }
			c.begin = func() *rig.Pending { return c.Start(unix.SYS_WRITE, fd, []byte("12345"), 5) }
			c.end = result("write", 5)
		case 2:
			in := fmt.Sprintf("in%d", i)
			m.put(t, in+"/first", "x")
			c.Chdir(m.old + "/" + in)
			c.use = func() {
				result("stat", 0)(c.Call(unix.SYS_STATX, unix.AT_FDCWD, "first", 0, unix.STATX_BASIC_STATS, make([]byte, 256)))
			}
			c.ready = func() { m.put(t, in+"/second", "x") }
			c.begin = func() *rig.Pending {
				return c.Start(unix.SYS_STATX, unix.AT_FDCWD, "second", 0, unix.STATX_BASIC_STATS, make([]byte, 256))
			}
			c.end = result("stat", 0)
		case 3:
			fd := c.Open(m.old+"/dir", unix.O_RDONLY)
			c.use = func() {
				c.Seek(fd, 0, unix.SEEK_SET)
				if got := len(c.Getdents(fd, 32<<10)); got != 20 {
					fails("getdents", got, 20)
				}
				c.Seek(fd, 0, unix.SEEK_SET)
			}
			c.begin = func() *rig.Pending { return c.Start(unix.SYS_GETDENTS64, fd, make([]byte, 32<<10), 32<<10) }
			c.end = func(ret int64, err error) {
				if err != nil || ret <= 0 {
					fails("getdents", err, nil)
				}
			}
		case 4:
			fd := c.Open(m.old+"/"+name, unix.O_RDONLY)
			at := c.Mmap(fd, 64*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			c.Store(at, []byte("own"))
			c.use = func() {
				if got := string(c.Load(at, 4)); got != "owna" {
					fails("private page", got, "owna")
				}
				if got := string(c.Load(at+uint64(2*page), 3)); got != "ccc" {
					fails("page", got, "ccc")
				}
			}
			c.ready = forget(fd)
			c.begin = func() *rig.Pending { return c.StartLoad(at+uint64(47*page), 3) }
			c.end = func(_ int64, err error) {
				if err != nil {
					fails("page fault", err, nil)
				}
			}
		}
		all = append(all, c)
	}
	for _, c := range all {
		c.use()
	}
	return all
}

// swapWith is mounts.swap with further arguments.
func (m *mounts) swapWith(t *testing.T, args ...string) rig.Result {
	t.Helper()
	r := rig.Run(t, rig.Build(t).Swap, append([]string{"run", "--json", "--from", m.old, "--to", m.new}, args...)...)
	if r.Status == 0 {
		for _, at := range []string{m.old, m.new} {
			if got := devAt(t, 0, at); got != m.newDev {
				t.Errorf("at %s is the file system %s, want %s", at, devName(got), devName(m.newDev))
			}
		}
		m.gone(t)
	}
	return r
}

// A daemon that was killed takes nobody with it.
func TestSwapFromADeadMount(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	all := clients(t, m, 50)
	m.oldProc.Kill()
	var r swapReport
	m.swapWith(t, "--timeout", "2m").OK(t).JSON(t, &r)
	if r.Processes != len(all) {
		t.Errorf("%d processes were swapped, want %d", r.Processes, len(all))
	}
	for _, c := range all {
		c.use()
	}
}

// What was written and never sent is not given up unless somebody says so.
func TestSwapFromADeadMountThatLosesPages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		serve func(rig.T, string, string) *rig.Daemon
		write func(p *rig.Puppet, fd int)
		held  string // what the refusal names
	}{
		{"shared mapping", func(t rig.T, dir, at string) *rig.Daemon { return rig.Bindfs(t, dir, at) }, func(p *rig.Puppet, fd int) {
			p.Store(p.Mmap(fd, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED), []byte("new"))
		}, "mapping"},
		{"write-back cache", rig.Writeback, func(p *rig.Puppet, fd int) {
			p.Write(fd, strings.Repeat("new.", page))
		}, "fd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			top := rig.Dir(t)
			m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
			m.put(t, "f", pages(4))
			m.put(t, "untouched", "x")
			m.oldProc, m.newProc = c.serve(t, m.data, m.old), rig.Bindfs(t, m.data, m.new)
			m.note(t)
			p, other := rig.StartPuppet(t), rig.StartPuppet(t)
			fd := p.Open(m.old+"/f", unix.O_RDWR)
			read := other.Open(m.old+"/untouched", unix.O_RDONLY)
			c.write(p, fd)
			m.oldProc.Kill()
			for range 2 { // that it was asked changes nothing
				m.swapWith(t).Refuses(t, fmt.Sprintf("%d (puppet)", p.PID), c.held, filepath.Base("f"), "--accept-loss")
			}
			rig.Run(t, rig.Build(t).Swap, "plan", "--from", m.old, "--to", m.new).Refuses(t, c.held, "--accept-loss")
			if r := m.swapWith(t, "--accept-loss").OK(t); !strings.Contains(r.Stderr, "lost") || !strings.Contains(r.Stderr, itoa(p.PID)) {
				t.Errorf("what is lost is not said: %q", r.Stderr)
			}
			m.moved(t, p, fd, "f")
			if got := other.Read(read, 2); got != "x" {
				t.Errorf("the other process reads %q", got)
			}
			p.Write(fd, "and on")
		})
	}
}

// Nothing is asked of a daemon that is stopped, and nobody is stopped for it.
func TestSwapFromAStoppedDaemonIsRefused(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	all := clients(t, m, 5)
	if err := unix.Kill(m.oldProc.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(m.oldProc.PID, unix.SIGCONT)
	m.swapWith(t).Refuses(t, itoa(m.oldProc.PID), "bindfs", "stopped", "--abort")
	unix.Kill(m.oldProc.PID, unix.SIGCONT)
	for _, c := range all {
		c.use()
	}
}

// The command of --mount is the new daemon's.
func TestSwapToWhatACommandMounts(t *testing.T) {
	t.Parallel()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old")}
	m.oldProc = rig.Bindfs(t, m.data, m.old)
	m.oldDev = devAt(t, 0, m.old)
	all := clients(t, m, 5)
	run := func(command string, args ...string) rig.Result {
		t.Helper()
		return rig.Run(t, rig.Build(t).Swap, append([]string{"run", "--from", m.old, "--mount", command}, args...)...)
	}
	run("exit 7 # %m").Fails(t, 1, "--mount", "exit status 7")
	run("true").Fails(t, 2, "--mount", "%m")
	run(rig.BindfsCommand(m.data), "--to", m.old).Fails(t, 2, "--to", "--mount")
	empty := rig.Mkdir(t, top, "empty")
	run(rig.BindfsCommand(empty)).Refuses(t, "missing on --to")
	m.oldProc.Kill()
	run(rig.BindfsCommand(m.data)).OK(t)
	for _, c := range all {
		c.use()
	}
	if devAt(t, 0, m.old) == m.oldDev {
		t.Error("the old file system is still mounted")
	}
	for _, left := range rig.MountsBeneath(t, "/run/spfs") {
		if strings.HasPrefix(left, "/run/spfs/mount-") {
			t.Errorf("left mounted: %s", left)
		}
	}
}

// waits says whether a process waits for a FUSE daemon.
func waits(pid int) bool {
	stack := rig.KernelStack(pid)
	return strings.Contains(stack, "fuse_") || strings.Contains(stack, "request_wait_answer") || strings.Contains(stack, "folio_wait")
}

// Whoever hangs in a daemon that is silent comes out of it with what the new
// one says.
func TestSwapFromAHungDaemon(t *testing.T) {
	t.Parallel()
	for name, silence := range map[string]func(t *testing.T, m *mounts){
		"stopped": func(t *testing.T, m *mounts) {
			if err := unix.Kill(m.oldProc.PID, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Kill(m.oldProc.PID, unix.SIGCONT) })
		},
		// Killed, but its connection lives on in somebody's descriptor.
		"killed": func(t *testing.T, m *mounts) {
			keepConnection(t, m.oldProc.PID)
			m.oldProc.Kill()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			all := clients(t, m, 50)
			for _, c := range all {
				c.ready()
			}
			bystander := rig.StartPuppet(t)
			bystander.Chdir(filepath.Dir(m.old))
			m.put(t, "unseen", "x")
			silence(t, m)
			// One that holds nothing there.
			passing := bystander.Start(unix.SYS_STATX, unix.AT_FDCWD, filepath.Base(m.old)+"/unseen", 0, unix.STATX_BASIC_STATS, make([]byte, 256))
			rig.Await(t, 10*time.Second, func() bool { return waits(bystander.PID) }, "the bystander waits")
			var calls []*rig.Pending
			for i, c := range all {
				if i%3 == 2 {
					calls = append(calls, nil) // it does not use the mount just now
					continue
				}
				calls = append(calls, c.begin())
				rig.Await(t, 10*time.Second, func() bool { return waits(c.PID) }, "process %d of kind %d waits", c.PID, i%5)
			}
			m.swapWith(t, "--abort", "--timeout", "2m").OK(t)
			if ret, err := passing.Wait(); ret != 0 {
				t.Errorf("the bystander's call: %d, %v", ret, err)
			}
			for i, c := range all {
				if calls[i] != nil {
					c.end(calls[i].Wait())
				}
				c.use()
			}
		})
	}
}

// keepConnection holds a copy of a daemon's /dev/fuse until t ends.
func keepConnection(t *testing.T, pid int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil || !strings.Contains(string(text), "fuse_connection:") {
			continue
		}
		number, err := strconv.Atoi(filepath.Base(info))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		kept++
	}
	if kept == 0 {
		t.Fatalf("process %d serves no connection", pid)
	}
}

// The content of a file without a name goes with its daemon.
func TestSwapFromADeadMountThatLosesAFile(t *testing.T) {
	t.Parallel()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	m.put(t, "f", "0123456789")
	// It does not rename what is unlinked and open, as bindfs does.
	m.oldProc, m.newProc = rig.Loopback(t, m.data, m.old), rig.Bindfs(t, m.data, m.new)
	m.note(t)
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	p.Seek(fd, 4, unix.SEEK_SET)
	p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, m.old+"/f", 0)
	m.oldProc.Kill()
	m.swapWith(t).Refuses(t, fmt.Sprintf("%d (puppet)", p.PID), fmt.Sprintf("fd %d", fd), "unlinked", "--accept-loss")
	if r := m.swapWith(t, "--accept-loss").OK(t); !strings.Contains(r.Stderr, "unlinked") {
		t.Errorf("what is lost is not said: %q", r.Stderr)
	}
	if st := p.Fstat(fd); st.Dev != m.newDev || st.Size != 10 {
		t.Errorf("it is on %s and of %d bytes, want %s and 10", devName(st.Dev), st.Size, devName(m.newDev))
	}
	if got := p.Read(fd, 3); got != "\x00\x00\x00" {
		t.Errorf("it reads %q", got)
	}
}
