package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/internal/mounts"
	"spfs/test/rig"
)

// twoMounts serves a directory, and a copy of it, at two mount points.
type twoMounts struct{ data, copy, old, new string }

func newTwoMounts(t *testing.T, options ...string) *twoMounts {
	t.Helper()
	dir := rig.Dir(t)
	m := &twoMounts{
		rig.Mkdir(t, dir, "data"), rig.Mkdir(t, dir, "copy"),
		rig.Mkdir(t, dir, "old"), rig.Mkdir(t, dir, "new"),
	}
	rig.Bindfs(t, m.data, m.old, options...)
	rig.Bindfs(t, m.copy, m.new, options...)
	return m
}

// write makes a file in both.
func (m *twoMounts) write(t *testing.T, name, content string) {
	t.Helper()
	rig.Write(t, m.data+"/"+name, content)
	rig.Write(t, m.copy+"/"+name, content)
}

func (m *twoMounts) plan(t *testing.T, scope Scope, options ...Option) *Plan {
	t.Helper()
	p, err := m.tryPlan(scope, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func (m *twoMounts) tryPlan(scope Scope, options ...Option) (*Plan, error) {
	from, err := NewEndpoint(m.old)
	if err != nil {
		return nil, err
	}
	to, err := NewEndpoint(m.new)
	if err != nil {
		return nil, err
	}
	return NewPlan(context.Background(), from, to, scope, options...)
}

func fdFlags(t *testing.T, f *os.File) int {
	t.Helper()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags
}

func TestReplacementsAreTheSameFilesWithTheSameFlags(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	m.write(t, "dir/x", "x")
	for _, d := range []string{m.data, m.copy} {
		if err := os.Symlink("file", d+"/link"); err != nil {
			t.Fatal(err)
		}
	}
	p := rig.StartPuppet(t)
	type open struct {
		path  string
		flags int
	}
	fds := map[int]open{}
	for _, o := range []open{
		{"file", unix.O_RDONLY},
		{"file", unix.O_WRONLY | unix.O_APPEND},
		{"file", unix.O_RDWR | unix.O_NONBLOCK | unix.O_SYNC},
		{"file", unix.O_RDONLY | unix.O_NOFOLLOW},
		{"file", unix.O_RDWR | unix.O_NOATIME | unix.O_DSYNC | unix.O_CREAT},
		{"file", unix.O_PATH},
		{"link", unix.O_PATH | unix.O_NOFOLLOW},
		{"dir", unix.O_RDONLY | unix.O_DIRECTORY},
		{"dir", unix.O_PATH | unix.O_DIRECTORY},
		{"dir", unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK},
		{"", unix.O_RDONLY},
	} {
		fds[p.Open(m.old+"/"+o.path, o.flags)] = o
	}
	p.Chdir(m.old + "/dir")
	plan := m.plan(t, Scope{})
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	clone, err := mountDevice(plan.Usage.Mounts[0].Replacement)
	if err != nil || clone != plan.To.Mount.Dev {
		t.Errorf("the clone is of %#x, want %#x (%v)", clone, plan.To.Mount.Dev, err)
	}
	for fd, o := range fds {
		d := plan.Usage.fd(t, p.PID, fd).Description
		if d.Replacement == nil {
			t.Errorf("%s %#o: no replacement", o.path, o.flags)
			continue
		}
		if got := fdFlags(t, d.Replacement); got != d.Flags {
			t.Errorf("%s %#o: flags %#o, want %#o", o.path, o.flags, got, d.Flags)
		}
		var got, want unix.Stat_t
		if err := errors.Join(unix.Fstat(int(d.Replacement.Fd()), &got), unix.Lstat(m.new+"/"+o.path, &want)); err != nil {
			t.Fatal(err)
		}
		if got.Ino != want.Ino || got.Dev != want.Dev {
			t.Errorf("%s: the replacement is another file", o.path)
		}
	}
	cwd := plan.Usage.Contexts[0].Cwd
	if cwd.Replacement == nil || fdFlags(t, cwd.Replacement)&unix.O_PATH == 0 {
		t.Error("the working directory's replacement is no O_PATH descriptor")
	}
}

func mountDevice(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Dev, err
}

func TestOneReplacementPerDescriptionAndPerMappedFile(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", strings.Repeat("x", 4*pageSize))
	p := rig.StartPuppet(t)
	a := p.Open(m.old+"/file", unix.O_RDWR)
	b := p.Open(m.old+"/file", unix.O_RDWR)
	for range 2 {
		p.Mmap(a, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	}
	p.Mmap(b, 2*pageSize, unix.PROT_READ, unix.MAP_SHARED)
	child := p.Spawn(int(unix.SIGCHLD))
	plan := m.plan(t, Scope{})
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	u := plan.Usage
	x, y := u.fd(t, p.PID, a).Description.Replacement, u.fd(t, p.PID, b).Description.Replacement
	if x == y || x != u.fd(t, child.TID(), a).Description.Replacement {
		t.Error("descriptions and replacements are not one to one")
	}
	if len(u.Spaces) != 2 {
		t.Fatalf("%d address spaces, want 2", len(u.Spaces))
	}
	seen := map[*os.File]bool{x: true, y: true}
	for _, s := range u.Spaces {
		first := s.Mappings[0].Replacement
		if seen[first] {
			t.Error("address spaces share a replacement")
		}
		seen[first] = true
		for _, mapping := range s.Mappings {
			if mapping.Replacement != first {
				t.Error("two replacements for the mappings of one file")
			}
		}
		if got := fdFlags(t, first) & unix.O_ACCMODE; got != unix.O_RDWR {
			t.Errorf("opened with %#o, and a shared mapping may become writable", got)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "same", "four")
	rig.Write(t, m.data+"/only-here", "x")
	rig.Write(t, m.data+"/size", "four")
	rig.Write(t, m.copy+"/size", "three")
	rig.Write(t, m.data+"/type", "x")
	rig.Mkdir(t, m.copy, "type")
	rig.Write(t, m.data+"/fifo", "")
	if err := unix.Mkfifo(m.copy+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	rig.Write(t, m.data+"/bent/file", "x")
	rig.Mkdir(t, m.copy, "outside")
	rig.Write(t, m.copy+"/outside/file", "x")
	if err := os.Symlink("outside", m.copy+"/bent"); err != nil {
		t.Fatal(err)
	}
	rig.Write(t, m.data+"/to-link", "root:")
	if err := os.Symlink("/etc/passwd", m.copy+"/to-link"); err != nil {
		t.Fatal(err)
	}
	p := rig.StartPuppet(t)
	p.Open(m.old+"/same", unix.O_RDONLY)
	for name, want := range map[string]string{
		"only-here": "missing on --to",
		"size":      "is 4 bytes here, 5 on --to",
		"type":      "is a file here, a directory on --to",
		"fifo":      "is a file here, a FIFO on --to",
		"bent/file": "symlink on --to",
		"to-link":   "is a file here, a symlink on --to",
	} {
		fd := p.Open(m.old+"/"+name, unix.O_RDONLY)
		plan := m.plan(t, Scope{})
		err := plan.Err()
		var refused *RefusedError
		if !errors.As(err, &refused) || exit.Status(err) != exit.Refused {
			t.Fatalf("%s: error %v of status %d, want a RefusedError of status %d", name, err, exit.Status(err), exit.Refused)
		}
		line := err.Error()
		if len(refused.Obstacles) != 1 || strings.Contains(line, "\n") || !strings.Contains(line, want) ||
			!strings.Contains(line, fmt.Sprintf("process %d (puppet): fd %d", p.PID, fd)) || !strings.Contains(line, name) {
			t.Errorf("%s: %q does not say %q", name, err, want)
		}
		if plan.Usage.fd(t, p.PID, fd).Description.Replacement != nil && name != "size" {
			t.Errorf("%s has a replacement", name)
		}
		p.Close(fd)
	}
	if err := m.plan(t, Scope{}).Err(); err != nil {
		t.Errorf("with nothing in the way: %v", err)
	}
}

func TestPlanNeedsTwoMountsOfWhichTheOldIsFUSE(t *testing.T) {
	m := newTwoMounts(t)
	rig.Mkdir(t, m.data, "plain")
	for _, c := range []struct {
		from, to, want string
		status         int
	}{
		{m.old, m.old, "the same", exit.Misused},
		{m.data, m.new, mounts.ErrNotMounted.Error(), exit.Failed},
		{m.old, m.copy, mounts.ErrNotMounted.Error(), exit.Failed},
		{"/proc", m.new, "not FUSE", exit.Failed},
		{m.old, m.new + "/nothing", mounts.ErrNotMounted.Error(), exit.Failed},
	} {
		p, err := (&twoMounts{old: c.from, new: c.to}).tryPlan(Scope{})
		if err == nil {
			p.Close()
		}
		if exit.Status(err) != c.status || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("from %s to %s: %v of status %d", c.from, c.to, err, exit.Status(err))
		}
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]Scope{
		"gone":          {PIDs: []int{gone.Process.Pid}},
		"kernel thread": {Trees: []int{2}},
		"no cgroup":     {Cgroups: []string{"/no/such/group"}},
		"relative":      {Cgroups: []string{"group"}},
	} {
		p, err := m.tryPlan(s)
		if err == nil {
			p.Close()
		}
		if status := exit.Status(err); status != exit.Failed && status != exit.Refused || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v of status %d", what, err, status)
		}
	}
}

func TestRefreshKeepsWhatFits(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	m.write(t, "other", "x")
	p := rig.StartPuppet(t)
	kept := p.Open(m.old+"/file", unix.O_RDWR)
	flagged := p.Open(m.old+"/file", unix.O_RDWR)
	closed := p.Open(m.old+"/other", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	before := plan.Usage
	clone := before.Mounts[0].Replacement
	dropped := before.fd(t, p.PID, closed).Description.Replacement

	p.Seek(kept, 7, unix.SEEK_SET)
	p.Must(unix.SYS_FCNTL, flagged, unix.F_SETFL, unix.O_APPEND)
	p.Close(closed)
	opened := p.Open(m.old+"/other", unix.O_WRONLY)
	p.Chdir(m.old)
	at := p.Mmap(kept, pageSize, unix.PROT_READ, unix.MAP_SHARED)
	if err := plan.Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	u := plan.Usage
	d := u.fd(t, p.PID, kept).Description
	if d.Replacement != before.fd(t, p.PID, kept).Description.Replacement || d.Pos != 7 || d.NewPos != 7 {
		t.Errorf("kept fd: another replacement, or position %d → %d, want 7", d.Pos, d.NewPos)
	}
	if d := u.fd(t, p.PID, flagged).Description; fdFlags(t, d.Replacement) != d.Flags || d.Flags&unix.O_APPEND == 0 {
		t.Errorf("flags of the replacement %#o, want %#o", fdFlags(t, d.Replacement), d.Flags)
	}
	if d := u.fd(t, p.PID, opened).Description; d.Replacement == nil || d.Flags&unix.O_ACCMODE != unix.O_WRONLY {
		t.Error("what was opened since has no replacement")
	}
	if _, err := dropped.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the replacement of what was closed is still open: %v", err)
	}
	if u.Mounts[0].Replacement != clone {
		t.Error("the mount was cloned again")
	}
	if u.Contexts[0].Cwd.Replacement == nil || u.Spaces[0].Mappings[0].Replacement == nil || u.Spaces[0].Mappings[0].Start != at {
		t.Error("the new working directory or mapping has no replacement")
	}

	// What differs now is refused, and only that.
	p.Seek(kept, 0, unix.SEEK_END)
	p.Write(kept, "more")
	err := plan.Refresh(context.Background())
	if err == nil || !strings.Contains(err.Error(), "is 14 bytes here, 10 on --to") {
		t.Errorf("after a write on the old mount only: %v", err)
	}
	rig.Write(t, m.copy+"/file", "0123456789more")
	if err := plan.Refresh(context.Background()); err != nil {
		t.Errorf("after the same on the new one: %v", err)
	}
}

func TestDirectoryPositions(t *testing.T) {
	m := newTwoMounts(t)
	for i := range 100 {
		m.write(t, fmt.Sprintf("same/%03d", i), "")
		rig.Write(t, fmt.Sprintf("%s/less/%03d", m.data, i), "")
	}
	rig.Write(t, m.copy+"/less/000", "")
	p := rig.StartPuppet(t)
	read := func(dir string, bytes int) int {
		fd := p.Open(m.old+"/"+dir, unix.O_RDONLY|unix.O_DIRECTORY)
		p.Getdents(fd, bytes)
		return fd
	}
	all := read("same", 100_000)
	plan := m.plan(t, Scope{}, AskOld())
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	d := plan.Usage.fd(t, p.PID, all).Description
	if d.Pos == 0 {
		t.Fatal("the directory that was read is at position 0")
	}
	if _, err := unix.Seek(int(d.Replacement.Fd()), d.NewPos, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Getdents(int(d.Replacement.Fd()), make([]byte, 4096)); n != 0 || err != nil {
		t.Errorf("at the end %d bytes are left to read (%v), want 0", n, err)
	}
	p.Close(all)

	fd := read("less", 2000)
	for _, options := range [][]Option{nil, {AskOld()}} {
		err := m.plan(t, Scope{}, options...).Err()
		if err == nil || !strings.Contains(err.Error(), "position") {
			t.Errorf("names that were read are missing on the new mount, and the error is %v", err)
		}
	}
	p.Close(fd)
}

// TestDirectoryInTheMiddle reads a directory partly on the old mount and the
// rest from its replacement: each name must come once.
func TestDirectoryInTheMiddle(t *testing.T) {
	m := newTwoMounts(t)
	const n = 300
	for i := range n {
		m.write(t, fmt.Sprintf("dir/%03d", i), "")
	}
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	names := p.Getdents(fd, 2000)
	if len(names) == 0 || len(names) >= n {
		t.Fatalf("%d of %d names were read: that is no middle", len(names), n)
	}
	plan := m.plan(t, Scope{}, AskOld())
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	d := plan.Usage.fd(t, p.PID, fd).Description
	if at := p.Offset(fd); int64(at) != d.Pos {
		t.Errorf("asking moved the old position from %d to %d", d.Pos, at)
	}
	if _, err := unix.Seek(int(d.Replacement.Fd()), d.NewPos, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	for {
		buf := make([]byte, 4096)
		got, err := unix.Getdents(int(d.Replacement.Fd()), buf)
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:got], -1, names)
	}
	seen := map[string]int{}
	for _, name := range names {
		seen[name]++
	}
	for i := range n {
		if name := fmt.Sprintf("%03d", i); seen[name] != 1 {
			t.Errorf("%s comes %d times, want once", name, seen[name])
		}
	}
}

// TestOwnersMount plans for a user's mount that admits nobody else, root
// neither.
func TestOwnersMount(t *testing.T) {
	const uid, gid = 65534, 65534 // fusermount wants a user that has a name: nobody
	m := newTwoMountsOf(t, uid, gid)
	user := startUser(t, uid, gid)
	fd := user.Open(m.old+"/file", unix.O_RDWR)
	user.Chdir(m.old)
	user.Mmap(fd, pageSize, unix.PROT_READ, unix.MAP_SHARED)
	if _, err := os.Stat(m.old + "/file"); !errors.Is(err, unix.EACCES) {
		t.Fatalf("root may look into the mount: %v", err)
	}
	plan := m.plan(t, Scope{})
	if err := plan.Err(); err != nil {
		t.Fatal(err)
	}
	if d := plan.Usage.fd(t, user.PID, fd).Description; d.Type != unix.S_IFREG || d.Replacement == nil {
		t.Errorf("type %#o, replacement %v", d.Type, d.Replacement)
	}
	// Nobody but the planner's threads was the user.
	if uid, euid, suid := unix.Getresuid(); uid|euid|suid != 0 {
		t.Errorf("ids are %d %d %d now", uid, euid, suid)
	}
}

func startUser(t *testing.T, uid, gid int) *rig.Puppet {
	t.Helper()
	user := rig.StartPuppet(t)
	user.Must(unix.SYS_SETGROUPS, 0, 0)
	user.Must(unix.SYS_SETRESGID, gid, gid, gid)
	user.Must(unix.SYS_SETRESUID, uid, uid, uid)
	return user
}

func newTwoMountsOf(t *testing.T, uid, gid int) *twoMounts {
	t.Helper()
	dir := rig.Dir(t)
	rig.Public(t, dir)
	m := &twoMounts{dir + "/data", dir + "/copy", dir + "/old", dir + "/new"}
	for _, d := range []string{m.data, m.copy, m.old, m.new} {
		rig.Mkdir(t, d)
		if err := os.Chown(d, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{m.data, m.copy} {
		rig.Write(t, d+"/file", "x")
		if err := os.Chown(d+"/file", uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	// A /dev/fuse that users may open, whatever this machine's is like.
	device := dir + "/fuse"
	if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(device, 0o666); err != nil {
		t.Fatal(err)
	}
	rig.Bind(t, device, "/dev/fuse")
	for from, to := range map[string]string{m.data: m.old, m.copy: m.new} {
		cmd := exec.Command("bindfs", "-f", "--no-allow-other", from, to)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		daemon := rig.Begin(t, cmd)
		t.Cleanup(func() { rig.Unmount(t, to) })
		rig.AwaitMount(t, to, daemon.Ended(), func() string { return "bindfs: " + daemon.Wait(t).Stderr })
	}
	return m
}
