package swap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

const pageSize = 4096

// largeFile is the kernel's O_LARGEFILE, which it sets for 64-bit programs and
// libraries leave out.
const largeFile = 0o100000

// findOn finds who uses the mount at a point.
func findOn(t *testing.T, point string, scope Scope) *Usage {
	t.Helper()
	at, err := NewEndpoint(point)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Find(context.Background(), at.Mount.Dev, scope)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// fd returns the entry of a descriptor in the table of a task.
func (u *Usage) fd(t *testing.T, tid, num int) FD {
	t.Helper()
	for _, table := range u.Tables {
		for _, task := range table.Tasks {
			if task.TID != tid {
				continue
			}
			for _, fd := range table.FDs {
				if fd.Num == num {
					return fd
				}
			}
		}
	}
	t.Fatalf("fd %d of task %d was not found", num, tid)
	return FD{}
}

// clear fails t if there are obstacles.
func (u *Usage) clear(t *testing.T) {
	t.Helper()
	for _, o := range u.Obstacles {
		t.Errorf("in the way: %v", o)
	}
}

func TestFindDescriptions(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/file", "0123456789")
	rig.Mkdir(t, data, "dir")
	odd := []string{"with space", "new\nline", `back\slash`, "real (deleted)", "\xff\xfe", "tab\t\\011", "\"quoted\""}
	for _, name := range odd {
		rig.Write(t, data+"/"+name, "x")
	}
	if err := os.Symlink("file", data+"/link"); err != nil {
		t.Fatal(err)
	}
	p := rig.StartPuppet(t)
	for _, c := range []struct {
		path        string
		flags       int
		kind        uint32
		want        int // flags found
		pos         int64
		closeOnExec bool
	}{
		{"/file", unix.O_RDONLY, unix.S_IFREG, unix.O_RDONLY, 0, false},
		{"/file", unix.O_RDWR | unix.O_APPEND | unix.O_CLOEXEC, unix.S_IFREG, unix.O_RDWR | unix.O_APPEND, 3, true},
		{"/file", unix.O_WRONLY | unix.O_NONBLOCK | unix.O_TRUNC, unix.S_IFREG, unix.O_WRONLY | unix.O_NONBLOCK, 0, false},
		{"/file", unix.O_PATH, unix.S_IFREG, unix.O_PATH, 0, false},
		{"/link", unix.O_PATH | unix.O_NOFOLLOW, unix.S_IFLNK, unix.O_PATH | unix.O_NOFOLLOW, 0, false},
		{"/dir", unix.O_RDONLY | unix.O_DIRECTORY, unix.S_IFDIR, unix.O_RDONLY | unix.O_DIRECTORY, 0, false},
		{"", unix.O_PATH | unix.O_CLOEXEC, unix.S_IFDIR, unix.O_PATH, 0, true},
	} {
		fd := p.Open(old+c.path, c.flags)
		if c.pos != 0 {
			p.Seek(fd, int(c.pos), unix.SEEK_SET)
		}
		got := findOn(t, old, Scope{}).fd(t, p.PID, fd)
		d := got.Description
		path := c.path
		if path == "" {
			path = "/"
		}
		if d.Path != path || d.Type != c.kind || d.Flags&^largeFile != c.want || d.Pos != c.pos || got.CloseOnExec != c.closeOnExec {
			t.Errorf("%s opened with %#o: found %q type %#o flags %#o pos %d cloexec %v", c.path, c.flags, d.Path, d.Type, d.Flags, d.Pos, got.CloseOnExec)
		}
		p.Close(fd)
	}
	for _, name := range odd {
		fd := p.Open(old+"/"+name, unix.O_RDONLY)
		u := findOn(t, old, Scope{})
		if d := u.fd(t, p.PID, fd).Description; d.Path != "/"+name || d.attr.unlinked {
			t.Errorf("%q: found %q, unlinked %v", name, d.Path, d.attr.unlinked)
		}
		u.clear(t)
		p.Close(fd)
	}
	for _, name := range []string{"gone", "gone (deleted)"} {
		fd := p.Open(old+"/"+name, unix.O_RDWR|unix.O_CREAT)
		p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, old+"/"+name, 0)
		u := findOn(t, old, Scope{})
		d := u.fd(t, p.PID, fd).Description
		if len(u.Obstacles) != 0 || !d.attr.unlinked || d.Path != "/"+name {
			t.Errorf("unlinked %q: found %q, in the way %v", name, d.Path, u.Obstacles)
		}
		p.Close(fd)
	}
	if u := findOn(t, old, Scope{}); len(u.Processes) != 0 || len(u.Descriptions) != 0 {
		t.Errorf("after all is closed: %d processes, %d descriptions", len(u.Processes), len(u.Descriptions))
	}
}

func TestFindDirectoriesAndMappings(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Mkdir(t, data, "dir")
	rig.Mkdir(t, data, "root")
	rig.Write(t, data+"/file", strings.Repeat("x", 4*pageSize))
	p := rig.StartPuppet(t)
	p.Chdir(old + "/dir")
	rw := p.Open(old+"/file", unix.O_RDWR)
	ro := p.Open(old+"/file", unix.O_RDONLY)
	want := map[uint64]Mapping{}
	add := func(fd, pages, prot, flags int, m Mapping) {
		m.Start = p.Mmap(fd, pages*pageSize, prot, flags)
		m.End = m.Start + uint64(pages*pageSize)
		m.Prot = prot
		want[m.Start] = m
	}
	add(rw, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, Mapping{Shared: true, MayWrite: true})
	add(rw, 2, unix.PROT_READ, unix.MAP_SHARED, Mapping{Shared: true, MayWrite: true})
	add(ro, 1, unix.PROT_READ, unix.MAP_SHARED, Mapping{Shared: true})
	add(ro, 3, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE, Mapping{})
	add(ro, 1, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE, Mapping{})
	p.Close(rw)
	p.Close(ro)
	p.Must(unix.SYS_CHROOT, old+"/root")
	u := findOn(t, old, Scope{})
	u.clear(t)
	if len(u.Contexts) != 1 || u.Contexts[0].Cwd == nil || u.Contexts[0].Cwd.Path != "/dir" ||
		u.Contexts[0].Root == nil || u.Contexts[0].Root.Path != "/root" {
		t.Errorf("cwd and root: %+v", u.Contexts)
	}
	if len(u.Spaces) != 1 {
		t.Fatalf("%d address spaces, want 1", len(u.Spaces))
	}
	for _, got := range u.Spaces[0].Mappings {
		w, ok := want[got.Start]
		if !ok || got.End != w.End || got.Prot != w.Prot || got.Shared != w.Shared || got.MayWrite != w.MayWrite || got.Path != "/file" {
			t.Errorf("found %+v, want %+v", got, w)
		}
		delete(want, got.Start)
	}
	for start := range want {
		t.Errorf("mapping at %x was not found", start)
	}
}

func TestFindSharing(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/file", "0123456789")
	p := rig.StartPuppet(t)
	a := p.Open(old+"/file", unix.O_RDONLY)
	dup := p.Dup(a)
	b := p.Open(old+"/file", unix.O_RDONLY)
	p.Chdir(old)

	child := p.Spawn(int(unix.SIGCHLD))
	own := child.Open(old+"/file", unix.O_RDONLY)
	const thread = unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	sharing := p.Spawn(thread | unix.CLONE_FS | unix.CLONE_FILES)
	private := p.Spawn(thread)
	late := p.Open(old+"/file", unix.O_WRONLY) // after the private table was copied
	private.Chdir("/")
	siblings := p.Spawn(unix.CLONE_FILES | unix.CLONE_FS | int(unix.SIGCHLD))

	u := findOn(t, old, Scope{})
	u.clear(t)
	first := u.fd(t, p.PID, a).Description
	for what, d := range map[string]*Description{
		"dup":            u.fd(t, p.PID, dup).Description,
		"child":          u.fd(t, child.TID(), a).Description,
		"thread":         u.fd(t, sharing.TID(), a).Description,
		"private thread": u.fd(t, private.TID(), a).Description,
		"CLONE_FILES":    u.fd(t, siblings.TID(), dup).Description,
	} {
		if d != first {
			t.Errorf("the description of the %s is another one", what)
		}
	}
	if d := u.fd(t, p.PID, b).Description; d == first {
		t.Error("two opens of one file are taken for one")
	}
	if n := len(u.Descriptions); n != 4 {
		t.Errorf("%d descriptions, want 4", n)
	}
	tables := map[*FDTable]int{}
	for _, table := range u.Tables {
		for _, task := range table.Tasks {
			tables[table]++
			switch task.TID {
			case p.PID, sharing.TID(), siblings.TID():
				if len(table.Tasks) != 3 {
					t.Errorf("the shared table has %d tasks, want 3", len(table.Tasks))
				}
			}
		}
	}
	if len(tables) != 3 {
		t.Errorf("%d tables, want 3", len(tables))
	}
	if len(u.Contexts) != 2 { // p's with its thread's and sibling's; the child's
		t.Errorf("%d contexts on the mount, want 2", len(u.Contexts))
	}
	u.fd(t, p.PID, late)
	u.fd(t, child.TID(), own)
	for _, table := range u.Tables {
		if table.Tasks[0].TID == private.TID() {
			for _, fd := range table.FDs {
				if fd.Num == late {
					t.Error("the private table has a descriptor that was opened in the other")
				}
			}
		}
	}
}

func TestFindInNamespacesAndParts(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/sub/deep/file", "x")
	part := rig.Mkdir(t, rig.Dir(t), "pa rt\n")
	rig.Bind(t, old+"/sub", part)
	p := rig.StartPuppet(t)
	other := rig.StartPuppet(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	})
	fds := map[*rig.Puppet][2]int{}
	for _, x := range []*rig.Puppet{p, other} {
		fds[x] = [2]int{x.Open(old+"/sub/deep/file", unix.O_RDONLY), x.Open(part+"/deep/file", unix.O_RDONLY)}
	}
	u := findOn(t, old, Scope{})
	u.clear(t)
	if len(u.Mounts) != 4 {
		t.Errorf("%d mounts, want 4", len(u.Mounts))
	}
	used := map[int]bool{}
	for x, pair := range fds {
		for i, fd := range pair {
			d := u.fd(t, x.PID, fd).Description
			wantRoot := []string{"/", "/sub"}[i]
			if d.Path != "/sub/deep/file" || d.Mount.Root != wantRoot {
				t.Errorf("found %q on a mount of %q, want /sub/deep/file on %q", d.Path, d.Mount.Root, wantRoot)
			}
			used[d.Mount.ID] = true
		}
	}
	if len(used) != 4 {
		t.Errorf("descriptions are on %d mounts, want 4", len(used))
	}
}

// TestFindNeverWaits lists a mount whose daemon is stopped, then one whose
// daemon is dead, with a process that waits in it.
func TestFindNeverWaits(t *testing.T) {
	data := rig.Mkdir(t, rig.Dir(t), "data")
	old := rig.Mkdir(t, rig.Dir(t), "old")
	daemon := rig.Bindfs(t, data, old)
	rig.Write(t, data+"/file", strings.Repeat("x", pageSize))
	p := rig.StartPuppet(t)
	p.Chdir(old)
	fd := p.Open(old+"/file", unix.O_RDWR)
	p.Mmap(fd, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	stuck := p.Spawn(unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM | unix.CLONE_FS | unix.CLONE_FILES)
	check := func(state string) {
		t.Helper()
		begin := time.Now()
		u := findOn(t, old, Scope{})
		if took := time.Since(begin); took > time.Second {
			t.Errorf("with the daemon %s it took %v", state, took)
		}
		u.fd(t, p.PID, fd)
		if len(u.Spaces) != 1 || len(u.Contexts) != 1 {
			t.Errorf("with the daemon %s: %d spaces, %d contexts, want 1 and 1", state, len(u.Spaces), len(u.Contexts))
		}
		u.clear(t)
	}
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pending := stuck.Start(unix.SYS_UNLINKAT, unix.AT_FDCWD, old+"/nothing", 0)
	rig.Await(t, 10*time.Second, func() bool {
		return strings.Contains(rig.KernelStack(p.PID), "fuse")
	}, "no thread waits for the daemon")
	check("stopped")
	if pending.Done() {
		t.Error("the call that should wait for the daemon has returned")
	}
	daemon.Kill()
	check("dead")
	pending.Wait()
}

func TestFindObstacles(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	elsewhere := rig.Dir(t)
	rig.Write(t, data+"/file", strings.Repeat("x", pageSize))
	rig.Mkdir(t, data, "dir")
	for name, c := range map[string]struct {
		make func(t *testing.T, p *rig.Puppet)
		want string
	}{
		"socket": {func(t *testing.T, p *rig.Puppet) {
			s := p.Must(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			name := old + "/dir/s"
			address := append([]byte{unix.AF_UNIX, 0}, name...)
			p.Must(unix.SYS_BIND, s, append(address, 0), len(address)+1)
		}, "bound to a name"},
		"sealed mapping": {func(t *testing.T, p *rig.Puppet) {
			at := p.Mmap(p.Open(old+"/file", unix.O_RDWR), pageSize, unix.PROT_READ, unix.MAP_SHARED)
			p.Must(unix.SYS_MSEAL, int(at), pageSize, 0)
		}, "sealed"},
		"guard region": {func(t *testing.T, p *rig.Puppet) {
			at := p.Mmap(p.Open(old+"/file", unix.O_RDWR), pageSize, unix.PROT_READ, unix.MAP_SHARED)
			const guardInstall = 102 // MADV_GUARD_INSTALL of include/uapi/asm-generic/mman-common.h
			p.Must(unix.SYS_MADVISE, int(at), pageSize, guardInstall)
		}, "guard regions"},
		"fanotify": {func(t *testing.T, p *rig.Puppet) {
			fd := p.Must(unix.SYS_FANOTIFY_INIT, unix.FAN_CLASS_NOTIF, 0)
			p.Must(unix.SYS_FANOTIFY_MARK, fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN, unix.AT_FDCWD, old)
		}, "fanotify"},
		"epoll": {func(t *testing.T, p *rig.Puppet) {
			ep := p.Must(unix.SYS_EPOLL_CREATE1, 0)
			fd := p.Open(old+"/file", unix.O_RDONLY)
			p.Must(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, fd, make([]byte, 12))
			p.Dup(fd)
			p.Close(fd)
		}, "epoll"},
		"in flight": {func(t *testing.T, p *rig.Puppet) {
			pair := make([]byte, 8)
			p.Must(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, pair)
			sendFD(t, p, int(pair[0]), p.Open(old+"/file", unix.O_RDONLY))
		}, "in flight"},
		"mount on top": {func(t *testing.T, p *rig.Puppet) { rig.Bind(t, elsewhere, old+"/dir") }, "mounted on top"},
		"detached mount": {func(t *testing.T, p *rig.Puppet) {
			point := rig.Mkdir(t, rig.Dir(t), "bind")
			rig.Bind(t, old, point)
			p.Open(point+"/file", unix.O_RDONLY)
			rig.Unmount(t, point)
		}, "detached"},
		"removed cwd": {func(t *testing.T, p *rig.Puppet) {
			p.Must(unix.SYS_MKDIRAT, unix.AT_FDCWD, old+"/tmp", 0o700)
			p.Chdir(old + "/tmp")
			p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, old+"/tmp", unix.AT_REMOVEDIR)
		}, "unlinked"},
	} {
		t.Run(name, func(t *testing.T) {
			p := rig.StartPuppet(t)
			c.make(t, p)
			u := findOn(t, old, Scope{})
			if !slices.ContainsFunc(u.Obstacles, func(o Obstacle) bool { return strings.Contains(o.String(), c.want) }) {
				t.Errorf("%q is not in the way: %v", c.want, u.Obstacles)
			}
			if len(u.Obstacles) > 1 {
				t.Errorf("more in the way than there is: %v", u.Obstacles)
			}
		})
	}
}

// sendFD sends a descriptor of p through one of its sockets.
func sendFD(t *testing.T, p *rig.Puppet, socket, fd int) {
	t.Helper()
	// pidfd_getfd would copy it here, where closing it asks the daemon, so p
	// sends it itself: a msghdr with one byte and one descriptor.
	page := p.Must(unix.SYS_MMAP, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
	base := uint64(page)
	buf := make([]byte, 512)
	put := func(at int, v uint64) {
		for i := range 8 {
			buf[at+i] = byte(v >> (8 * i))
		}
	}
	put(16, base+256) // msg_iov
	put(24, 1)
	put(32, base+128) // msg_control
	put(40, uint64(unix.CmsgSpace(4)))
	rights := unix.UnixRights(fd)
	copy(buf[128:], rights)
	put(256, base+300)
	put(264, 1)
	p.Store(base, buf)
	p.Must(unix.SYS_SENDMSG, socket, page, 0)
}

func TestFindOutsideScope(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/file", "x")
	p, other := rig.StartPuppet(t), rig.StartPuppet(t)
	a := p.Open(old+"/file", unix.O_RDONLY)
	other.Open(old+"/file", unix.O_RDONLY)
	u := findOn(t, old, Scope{PIDs: []int{p.PID}})
	u.clear(t)
	if len(u.Processes) != 1 || u.Processes[0].PID != p.PID || len(u.Descriptions) != 1 {
		t.Errorf("in scope: %v, %d descriptions", u.Processes, len(u.Descriptions))
	}
	child := p.Spawn(int(unix.SIGCHLD))
	u = findOn(t, old, Scope{PIDs: []int{p.PID}})
	if len(u.Obstacles) != 1 || !strings.Contains(u.Obstacles[0].Reason, fmt.Sprint(child.TID())) {
		t.Errorf("fd %d is shared with %d outside the scope, and in the way is %v", a, child.TID(), u.Obstacles)
	}
	u = findOn(t, old, Scope{Trees: []int{p.PID}})
	u.clear(t)
	if len(u.Processes) != 2 {
		t.Errorf("%d processes in the tree, want 2", len(u.Processes))
	}
}
