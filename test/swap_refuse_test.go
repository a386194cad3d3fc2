package test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// What spfs-swap refuses: a line that names process, resource and reason, the
// right status, and everything as it was.
func TestSwapRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		// make makes the obstacle, held by p, and says what the line must name.
		make func(t *testing.T, m *mounts, p *rig.Puppet) []string
	}{
		{"a file that is missing on the new mount", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.elsewhere(t)
			rig.Write(t, m.data+"/only-here", "x")
			p.Open(m.old+"/only-here", unix.O_RDONLY)
			return []string{itoa(p.PID), "puppet", "only-here"}
		}},
		{"a file of another type there", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.elsewhere(t)
			rig.Write(t, m.data+"/thing", "x")
			rig.Mkdir(t, m.otherData, "thing")
			p.Open(m.old+"/thing", unix.O_RDONLY)
			return []string{itoa(p.PID), "puppet", "thing"}
		}},
		{"a file of another size there", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.elsewhere(t)
			rig.Write(t, m.data+"/thing", "four")
			rig.Write(t, m.otherData+"/thing", "three")
			p.Open(m.old+"/thing", unix.O_RDONLY)
			return []string{itoa(p.PID), "puppet", "thing"}
		}},
		{"a working directory that is missing there", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.elsewhere(t)
			rig.Mkdir(t, m.data, "only-here")
			p.Chdir(m.old + "/only-here")
			return []string{itoa(p.PID), "puppet", "only-here"}
		}},
		{"a mapped file that is missing there", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.elsewhere(t)
			rig.Write(t, m.data+"/mapped", pages(1))
			fd := p.Open(m.old+"/mapped", unix.O_RDONLY)
			p.Mmap(fd, page, unix.PROT_READ, unix.MAP_PRIVATE)
			p.Close(fd)
			return []string{itoa(p.PID), "puppet", "mapped"}
		}},
		{"an unlinked directory", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			p.Must(unix.SYS_MKDIRAT, unix.AT_FDCWD, m.old+"/unlinked", 0o700)
			fd := p.Open(m.old+"/unlinked", unix.O_RDONLY|unix.O_DIRECTORY)
			p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, m.old+"/unlinked", unix.AT_REMOVEDIR)
			return []string{itoa(p.PID), "puppet", itoa(fd), "unlinked"}
		}},
		{"a directory that may have F_NOTIFY", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			fd := p.Open(m.old, unix.O_RDONLY|unix.O_DIRECTORY)
			p.Must(unix.SYS_FCNTL, fd, unix.F_NOTIFY, 4) // DN_CREATE
			return []string{itoa(p.PID), "puppet", "F_NOTIFY"}
		}},
		{"a lease that is being broken", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.put(t, "leased", "x")
			fd := p.Open(m.old+"/leased", unix.O_RDONLY)
			p.Must(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, sigset(int(unix.SIGIO)), 0, 8)
			p.Must(unix.SYS_FCNTL, fd, unix.F_SETLEASE, unix.F_RDLCK)
			stranger := rig.StartPuppet(t)
			if _, err := stranger.Call(unix.SYS_OPENAT, unix.AT_FDCWD, m.old+"/leased", unix.O_WRONLY|unix.O_NONBLOCK, 0); err != unix.EWOULDBLOCK {
				t.Fatalf("an open against the lease: %v", err)
			}
			return []string{itoa(p.PID), "puppet", "leased", "broken"}
		}},
		{"a registration with an epoll by a number that is closed", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.put(t, "polled", "x")
			fd := p.Open(m.old+"/polled", unix.O_RDONLY)
			epoll := p.Must(unix.SYS_EPOLL_CREATE1, 0)
			p.Must(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, fd, epollEvent(unix.EPOLLIN, 1))
			p.Dup(fd)
			p.Close(fd)
			return []string{itoa(p.PID), "puppet", "epoll", itoa(fd)}
		}},
		{"a fanotify mark", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			fd := p.Must(unix.SYS_FANOTIFY_INIT, unix.FAN_CLASS_NOTIF, 0)
			p.Must(unix.SYS_FANOTIFY_MARK, fd, unix.FAN_MARK_ADD, unix.FAN_OPEN, unix.AT_FDCWD, m.old)
			return []string{itoa(p.PID), "puppet", "fanotify"}
		}},
		{"a socket bound there", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			fd := p.Must(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			p.Chdir(m.old)
			name := append([]byte{unix.AF_UNIX, 0}, "socket\x00"...)
			p.Must(unix.SYS_BIND, fd, name, len(name))
			p.Chdir("/")
			return []string{itoa(p.PID), "puppet", "socket"}
		}},
		{"a process that is traced", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			m.put(t, "f", "x")
			p.Open(m.old+"/f", unix.O_RDONLY)
			tracer := rig.StartPuppet(t)
			const seize = 0x4206 // PTRACE_SEIZE
			tracer.Must(unix.SYS_PTRACE, seize, p.PID, 0, 0)
			return []string{itoa(p.PID), "puppet", "trace"}
		}},
		{"a mount on top", func(t *testing.T, m *mounts, p *rig.Puppet) []string {
			rig.Mkdir(t, m.data, "inner")
			if err := unix.Mount("inner", m.old+"/inner", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { rig.Unmount(t, m.old+"/inner") })
			return []string{m.old + "/inner"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			p := rig.StartPuppet(t)
			names := c.make(t, m, p)
			counter := rig.StartCounter(t, rig.Mkdir(t, m.data, "counter"), rig.CounterOptions{})
			m.unchangedBy(t, p, func() {
				for _, command := range []string{"plan", "run"} {
					rig.Run(t, rig.Build(t).Swap, command, "--from", m.old, "--to", m.new).Refuses(t, names...)
				}
			})
			counter.Check()
		})
	}
}

// elsewhere makes the new mount one of another directory.
func (m *mounts) elsewhere(t *testing.T) {
	t.Helper()
	rig.Unmount(t, m.new)
	m.otherData = rig.Mkdir(t, parent(m.data), "other-data")
	rig.Bindfs(t, m.otherData, m.new)
	m.note(t)
}

// unchangedBy checks that what f does changes nothing: not the mount points, not
// the process's descriptors and mappings, and that nobody stays stopped.
func (m *mounts) unchangedBy(t *testing.T, p *rig.Puppet, f func()) {
	t.Helper()
	state := func() (s []string) {
		r := rig.Run(t, "sh", "-c", `for f in /proc/$1/fd/*; do readlink $f; done; cat /proc/$1/maps; cat /proc/$1/status | grep -E '^(State|Sig[PBIC]|ShdPnd|TracerPid)'`, "sh", itoa(p.PID))
		return append(strings.Split(r.Stdout, "\n"), devName(devAt(t, 0, m.old)), devName(devAt(t, 0, m.new)))
	}
	before := state()
	f()
	if after := state(); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func TestSwapBadInput(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	rig.Write(t, parent(m.data)+"/file", "")
	p := rig.StartPuppet(t)
	p.Open(m.old+"/f", unix.O_RDONLY)
	ended := rig.Begin(t, exec.Command("true"))
	<-ended.Ended()
	const kthreadd = "2"
	m.unchangedBy(t, p, func() {
		for _, c := range []struct {
			args   string
			status int
			names  string
		}{
			{"", 2, ""},
			{"list", 2, "MOUNTPOINT"},
			{"list %/data", 1, "%/data"},
			{"list %/none", 1, "%/none"},
			{"run", 2, "--from"},
			{"run --from %/old", 2, "--to"},
			{"run --from %/old --to %/old", 2, "%/old"},
			{"plan --from %/old --to %/old", 2, "%/old"},
			{"run --from %/data --to %/new", 1, "%/data"},
			{"run --from %/old --to %/data", 1, "%/data"},
			{"run --from %/none --to %/new", 1, "%/none"},
			{"run --from %/old --to %/file", 1, "%/file"},
			{"run --from %/old --to %/new --pid nobody", 2, "nobody"},
			{"run --from %/old --to %/new --pid " + itoa(ended.PID), 3, itoa(ended.PID)},
			{"run --from %/old --to %/new --pid " + kthreadd, 3, kthreadd},
			{"run --from %/old --to %/new --timeout never", 2, "never"},
			{"nonsense", 2, "nonsense"},
		} {
			fill := func(s string) string { return strings.ReplaceAll(s, "%", parent(m.data)) }
			r := rig.Run(t, rig.Build(t).Swap, strings.Fields(fill(c.args))...)
			if c.args == "" {
				continue // says what there is
			}
			r.Fails(t, c.status, fill(c.names))
		}
	})
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	rig.Public(t, parent(m.data))
	programs := rig.Build(t)
	rig.Public(t, parent(programs.SPFS))
	for _, c := range [][]string{
		{programs.SPFS, "mount", m.data},
		{programs.SPFS, "mode", m.old, "stub"},
		{programs.SPFS, "status"},
		{programs.SPFS, "umount", m.old},
		{programs.SPFS, "dump", "--tree", "1", "--images-dir", m.data},
		{programs.SPFS, "restore", "--images-dir", m.data},
		{programs.Swap, "list", m.old},
		{programs.Swap, "plan", "--from", m.old, "--to", m.new},
		{programs.Swap, "run", "--from", m.old, "--to", m.new},
	} {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
		rig.RunCmd(t, cmd).Fails(t, 1, "root")
	}
}
