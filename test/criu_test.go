package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// dump checkpoints a container into a new directory and returns that.
func dump(t *testing.T, c *rig.Container, flags ...string) (images string) {
	t.Helper()
	images = rig.Mkdir(t, rig.Dir(t), "images")
	dumpCommand(t, c, images, flags...).OK(t)
	if len(flags) == 0 && rig.Alive(c.PID) {
		t.Error("after the dump the tree is still there")
	}
	return images
}

func dumpCommand(t *testing.T, c *rig.Container, images string, flags ...string) rig.Result {
	t.Helper()
	return rig.SPFS(t, slices.Concat([]string{"dump", "--tree", itoa(c.PID), "--images-dir", images,
		"--criu", rig.Build(t).CRIU}, flags)...)
}

// restore brings a container back.
func restore(t *testing.T, c *rig.Container, images string, flags ...string) {
	t.Helper()
	r := restoreCommand(t, c, images, flags...).OK(t)
	c.Restored()
	if said := strings.TrimSpace(r.Stdout); said != itoa(c.PID) {
		t.Errorf("restore printed %q, want the root's pid %d", said, c.PID)
	}
}

func restoreCommand(t *testing.T, c *rig.Container, images string, flags ...string) rig.Result {
	t.Helper()
	t.Cleanup(func() { discardStubs(t) })
	return rig.SPFS(t, slices.Concat([]string{"restore", "--images-dir", images, "--detach", "--criu", rig.Build(t).CRIU},
		flags, []string{"--", "--root", c.Root})...)
}

// discardStubs ends the stubs that a restore without --mount leaves, as a user
// would, and sees to it that they leave nothing.
func discardStubs(t *testing.T) {
	t.Helper()
	for _, s := range rig.Statuses(t) {
		rig.SPFS(t, "umount", "--force", s.Mountpoint).OK(t)
	}
	nothingLeft(t)
}

// nothingLeft waits until the directory of everything that runs is empty: a
// stub's daemon cleans up when the stub's last user has gone.
func nothingLeft(t *testing.T) {
	t.Helper()
	rig.Await(t, 20*time.Second, func() bool {
		entries, err := os.ReadDir("/run/spfs")
		return err == nil && len(entries) == 0 && len(rig.MountsBeneath(t, "/run/spfs")) <= 1 // a tmpfs: rig.Contain
	}, "the end of everything in /run/spfs")
}

// swapOff swaps everyone from a stub of a restore to what is mounted at to, and
// checks that nothing but to is left of either on this machine.
func swapOff(t *testing.T, stub rig.Status, data, to string) (m *mounts) {
	t.Helper()
	m = &mounts{data: data, old: stub.Mountpoint, new: to}
	m.note(t)
	rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).OK(t)
	nothingLeft(t)
	m.gone(t)
	if at := rig.MountsOf(t, m.newDev); !slices.Equal(at, []string{to}) {
		t.Errorf("the new file system is mounted at %v, want only %s", at, to)
	}
	return m
}

// stubBy finds the stub in which pid waits.
func stubBy(t *testing.T, pid int) (stub rig.Status) {
	t.Helper()
	rig.Await(t, 20*time.Second, func() bool {
		for _, s := range rig.Statuses(t) {
			if slices.ContainsFunc(s.Held, func(h rig.Held) bool { return h.PID == pid }) {
				stub = s
				return true
			}
		}
		return false
	}, "spfs status tells of process %d, which waits", pid)
	return stub
}

// kinds are the ways to serve a directory, both by hand and by --mount.
func kinds(t *testing.T) map[string]kind {
	ssh := rig.StartSSH(t)
	return map[string]kind{
		"bindfs": {func(t *testing.T, dir, at string) *rig.Daemon { return rig.Bindfs(t, dir, at) }, rig.BindfsCommand},
		"sshfs":  {func(t *testing.T, dir, at string) *rig.Daemon { return ssh.Sshfs(t, dir, at) }, ssh.SshfsCommand},
	}
}

type kind struct {
	serve   func(t *testing.T, dir, at string) *rig.Daemon
	command func(dir string) string
}

// The story of it all: checkpoint, kill everything, restore onto a stub, a new
// daemon, swap, go on.
func TestCheckpointThenSwapByHand(t *testing.T) {
	for name, k := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			top := rig.Dir(t)
			data, mnt, again := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt"), rig.Mkdir(t, top, "again")
			daemon := k.serve(t, data, mnt)
			c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 5, Threads: 1, Children: 1}, mnt+":/mnt")
			c.Counter.CountsOn(50)

			images := dump(t, c)
			rig.Unmount(t, mnt)
			daemon.Kill()
			at := c.Counter.Count()

			restore(t, c, images)
			stub := stubBy(t, c.PID)
			if stub.Mode != "stub" {
				t.Errorf("the restored tree's mount is a %s", stub.Mode)
			}
			c.Counter.Stands(50 * time.Millisecond)
			if got := c.Counter.Count(); got > at+3 { // a round may have been all but done
				t.Errorf("counted from %d to %d without a file system", at, got)
			}

			k.serve(t, data, again)
			m := swapOff(t, stub, data, again)
			c.Counter.CountsOn(100)
			if got := devAt(t, c.PID, "/mnt"); got != m.newDev {
				t.Errorf("the container has %s at /mnt, want %s", devName(got), devName(m.newDev))
			}
			c.Counter.Check()
			rig.Await(t, 10*time.Second, func() bool { return !rig.Alive(stub.PID) }, "the end of the stub")
			c.Counter.End(data)
		})
	}
}

func TestRestoreWithMountCommand(t *testing.T) {
	for name, k := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			top := rig.Dir(t)
			data, mnt := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
			daemon := k.serve(t, data, mnt)
			c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 5, Threads: 1, Children: 1}, mnt+":/mnt")
			c.Counter.CountsOn(50)
			for range 2 { // what was restored can be checkpointed again
				images := dump(t, c)
				rig.Unmount(t, mnt)
				daemon.Kill()
				restore(t, c, images, "--mount", "/mnt="+k.command(data))
				c.Counter.CountsOn(100)
				c.Counter.Check()
				if all := rig.Statuses(t); len(all) != 0 {
					t.Errorf("after the swap there is still %+v", all)
				}
			}
			c.Counter.End(data)
		})
	}
}

func TestDumpLeavesRunning(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 5, Threads: 1, Children: 1}, mnt[0]+":/mnt")
	fds, maps := c.Counter.CountFDs(c.PID), rig.CountMappings(t, c.PID)
	for range 5 {
		dump(t, c, "--leave-running")
		c.Counter.CountsOn(20)
	}
	c.Counter.Check()
	if got := c.Counter.CountFDs(c.PID); got != fds {
		t.Errorf("%d descriptors, want %d", got, fds)
	}
	if got := rig.CountMappings(t, c.PID); got != maps {
		t.Errorf("%d mappings, want %d", got, maps)
	}
	c.Counter.End(data)
}

// Several FUSE mounts in one tree, one of them bound to several places, and
// everything that a process may hold on them.
func TestCheckpointOfSeveralMounts(t *testing.T) {
	top := rig.Dir(t)
	one, two := rig.Mkdir(t, top, "data-one"), rig.Mkdir(t, top, "data-two")
	mntOne, mntTwo := rig.Mkdir(t, top, "one"), rig.Mkdir(t, top, "two")
	rig.Write(t, one+"/sub/f", "0123456789")
	rig.Write(t, two+"/mapped", pages(8))
	want := map[string]bool{}
	for i := range 300 {
		name := "entry-" + strconv.Itoa(i)
		rig.Write(t, two+"/dir/"+name, "")
		want[name] = true
	}
	daemons := []*rig.Daemon{rig.Bindfs(t, one, mntOne), rig.Bindfs(t, two, mntTwo)}
	c, p := rig.StartPuppetContainer(t, mntOne+":/one", mntOne+":/also", mntOne+"/sub:/part", mntTwo+":/two")

	paths := []string{"/one/sub/f", "/also/sub/f", "/part/f"}
	var fds []int
	for i, path := range paths {
		fd := p.Open(path, unix.O_RDWR|unix.O_APPEND)
		p.Seek(fd, i+1, unix.SEEK_SET)
		fds = append(fds, fd)
	}
	same := p.Must(unix.SYS_DUP3, fds[0], 77, unix.O_CLOEXEC)
	path := p.Open("/two/mapped", unix.O_PATH)
	flags := p.GetFlags(path)
	dir := p.Open("/two/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	read := p.Getdents(dir, 2048)
	fd := p.Open("/two/mapped", unix.O_RDWR)
	shared := p.Mmap(fd, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	private := p.Mmap(fd, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	p.Store(shared+10, []byte("SHARED"))
	p.Store(private+3*page, []byte("PRIVATE"))
	p.Close(fd)
	p.Chdir("/part")
	child := p.Spawn(fork)

	images := dump(t, c)
	for _, m := range []string{mntOne, mntTwo} {
		rig.Unmount(t, m)
	}
	for _, d := range daemons {
		d.Kill()
	}
	restore(t, c, images, "--mount", "/also="+rig.BindfsCommand(one), "--mount", "/two="+rig.BindfsCommand(two))
	p.PID = c.PID
	child.PID = childOf(t, c.PID)

	devOne, devTwo := devAt(t, c.PID, "/one"), devAt(t, c.PID, "/two")
	for _, at := range []string{"/also", "/part"} {
		if got := devAt(t, c.PID, at); got != devOne {
			t.Errorf("at %s is %s, want %s as at /one", at, devName(got), devName(devOne))
		}
	}
	if devOne == devTwo {
		t.Error("the two file systems became one")
	}
	for i, fd := range fds {
		if got := p.Fstat(fd).Dev; got != devOne {
			t.Errorf("fd of %s is on %s, want %s", paths[i], devName(got), devName(devOne))
		}
		if got := p.Link(fd); got != paths[i] {
			t.Errorf("fd of %s is %s", paths[i], got)
		}
		if got := p.Offset(fd); got != i+1 {
			t.Errorf("fd of %s: offset %d, want %d", paths[i], got, i+1)
		}
		if got := p.GetFlags(fd); got&(unix.O_ACCMODE|unix.O_APPEND) != unix.O_RDWR|unix.O_APPEND {
			t.Errorf("fd of %s: flags %#o", paths[i], got)
		}
		if !rig.SameDescription(t, p, fd, child, fd) {
			t.Errorf("fd of %s is no longer shared with the child", paths[i])
		}
	}
	if !rig.SameDescription(t, p, fds[0], p, same) || p.FDFlags(same) != unix.FD_CLOEXEC {
		t.Error("the duplicate is no longer one, or lost its close-on-exec")
	}
	if got := p.GetFlags(path); got != flags {
		t.Errorf("O_PATH descriptor: flags %#o, want %#o", got, flags)
	}
	if got := p.Fstat(path).Dev; got != devTwo {
		t.Errorf("O_PATH descriptor is on %s, want %s", devName(got), devName(devTwo))
	}
	for {
		more := p.Getdents(dir, 2048)
		if len(more) == 0 {
			break
		}
		read = append(read, more...)
	}
	slices.Sort(read)
	if len(read) != 300 || len(slices.Compact(read)) != 300 {
		t.Errorf("the directory gave %d entries, want 300", len(read))
	}
	for _, q := range []*rig.Puppet{p, child} {
		if got := string(q.Load(shared+8, 10)); got != "aaSHAREDaa" {
			t.Errorf("shared mapping holds %q", got)
		}
		if got := string(q.Load(private+3*page-1, 9)); got != "cPRIVATEd" {
			t.Errorf("private mapping holds %q", got)
		}
		if got := q.Getcwd(); got != "/part" {
			t.Errorf("cwd %s, want /part", got)
		}
	}
	p.Write(fds[0], "!")
	if b, err := os.ReadFile(one + "/sub/f"); err != nil || string(b) != "0123456789!" {
		t.Errorf("written after: %q, %v", b, err)
	}
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	tree := rig.Tree(pid)
	if len(tree) != 2 {
		t.Fatalf("the tree is %v, want two processes", tree)
	}
	return tree[1]
}

// What CRIU says when it fails is shown, and the tree runs on.
func TestDumpThatFails(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	rig.Write(t, data+"/f", "content")
	c, p := rig.StartPuppetContainer(t, mnt[0]+":/mnt")
	fd := p.Open("/mnt/f", unix.O_RDONLY)
	p.Read(fd, 3)
	// CRIU wants --file-locks for this.
	p.Must(unix.SYS_FLOCK, p.Open("/tmp/locked", unix.O_RDWR|unix.O_CREAT), unix.LOCK_EX)

	images := rig.Mkdir(t, rig.Dir(t), "images")
	r := dumpCommand(t, c, images)
	if r.Status != 1 {
		t.Errorf("exit status %d, want 1", r.Status)
	}
	for _, want := range []string{"lock", filepath.Join(images, "dump.log")} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("does not say %q:\n%s", want, r.Stderr)
		}
	}
	noImages(t, images)
	if got := p.Read(fd, 10); got != "tent" {
		t.Errorf("after a dump that failed the tree reads %q", got)
	}
	// And with it, it works.
	dumpCommand(t, c, images, "--", "--file-locks").OK(t)
}

// noImages checks that nothing but logs is in an image directory.
func noImages(t *testing.T, images string) {
	t.Helper()
	entries, err := os.ReadDir(images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".log") {
			t.Errorf("left in the image directory: %s", e.Name())
		}
	}
}

func TestDumpBadInput(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	top := rig.Dir(t)
	images := rig.Mkdir(t, top, "images")
	rig.Write(t, top+"/file", "")
	rig.Write(t, top+"/old-criu", "#!/bin/sh\necho Version: 2.6\n")
	rig.Write(t, top+"/no-criu", "#!/bin/sh\nexit 1\n")
	for _, name := range []string{"old-criu", "no-criu"} {
		if err := os.Chmod(filepath.Join(top, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	gone := rig.Begin(t, trueCommand())
	<-gone.Ended()
	criu := "--criu " + rig.Build(t).CRIU + " "
	for _, bad := range []struct {
		args   string
		status int
		names  string
	}{
		{"dump", 2, "--tree"},
		{"dump --tree x --images-dir %/images", 2, "tree"},
		{"dump --tree $", 2, "--images-dir"},
		{"dump " + criu + "--tree $ --images-dir %/none", 1, "%/none"},
		{"dump " + criu + "--tree $ --images-dir %/file", 1, "%/file"},
		{"dump " + criu + "--tree " + itoa(gone.PID) + " --images-dir %/images", 3, itoa(gone.PID)},
		{"dump " + criu + "--tree 2 --images-dir %/images", 3, "2"},
		{"dump --criu %/none --tree $ --images-dir %/images", 1, "%/none"},
		{"dump --criu %/no-criu --tree $ --images-dir %/images", 1, "%/no-criu"},
		{"dump --criu %/old-criu --tree $ --images-dir %/images", 1, "2.6"},
		{"dump " + criu + "--tree $ --images-dir %/images -- --tree 1", 2, "--tree"},
	} {
		fill := func(s string) string {
			return strings.ReplaceAll(strings.ReplaceAll(s, "%", top), "$", itoa(c.PID))
		}
		rig.SPFS(t, strings.Fields(fill(bad.args))...).Fails(t, bad.status, fill(bad.names))
		noImages(t, images)
	}
	c.Counter.CountsOn(10)
	c.Counter.Check()
}

// Images that were tampered with are refused, whatever byte of whatever file
// it is, and so is what was never a checkpoint.
func TestRestoreBadImages(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	refused := func(what, dir string, status int, names ...string) {
		t.Helper()
		r := restoreCommand(t, c, dir)
		if r.Status != status {
			t.Errorf("%s: exit status %d, want %d\n%s", what, r.Status, status, r.Stderr)
		}
		r.Fails(t, status, names...)
		if all := rig.Statuses(t); len(all) != 0 {
			t.Errorf("%s: left behind %+v", what, all)
		}
		c.NotRunning()
	}
	top := rig.Dir(t)
	refused("missing", top+"/none", 1, top+"/none")
	refused("empty", rig.Mkdir(t, top, "empty"), 3, top+"/empty")

	entries, err := os.ReadDir(images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") || e.Name() == "stats-dump" {
			continue // nothing that a restore reads
		}
		path := filepath.Join(images, e.Name())
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for what, b := range map[string][]byte{
			"cut short":        whole[:max(0, len(whole)-1)],
			"one byte changed": changed(whole),
		} {
			if len(b) == len(whole) && what == "cut short" {
				continue // an empty one
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(e.Name()+" "+what, images, 3, e.Name())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused(e.Name()+" missing", images, 3)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Put together again it is the checkpoint that it was.
	restore(t, c, images)
	stubBy(t, c.PID)
	c.Kill()
}

func changed(b []byte) []byte {
	b = slices.Clone(b)
	if len(b) == 0 {
		return []byte{0}
	}
	b[len(b)/2] ^= 0x20
	return b
}

func TestRestoreBadInput(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	for _, bad := range []struct {
		flags  []string
		status int
		names  string
	}{
		{[]string{"--mount", "/mnt"}, 2, "/mnt"},
		{[]string{"--mount", "/mnt=true"}, 2, "%m"},
		{[]string{"--mount", "/other=bindfs " + data + " %m"}, 2, "/other"},
		{[]string{"--strategy", "other"}, 2, "other"},
		{[]string{"--strategy", "handover"}, 3, "handover"},
		{[]string{"--timeout", "never"}, 2, "never"},
	} {
		restoreCommand(t, c, images, bad.flags...).Fails(t, bad.status, bad.names)
		c.NotRunning()
		if all := rig.Statuses(t); len(all) != 0 {
			t.Errorf("%v: left behind %+v", bad.flags, all)
		}
	}

	// CRIU fails: its last words are shown, and nothing is left.
	rig.Write(t, c.Root+"/bin/counter", "another program")
	r := restoreCommand(t, c, images)
	if r.Status != 1 || !strings.Contains(r.Stderr, filepath.Join(images, "restore.log")) {
		t.Errorf("a program that changed: exit status %d\n%s", r.Status, r.Stderr)
	}
	if all := rig.Statuses(t); len(all) != 0 {
		t.Errorf("after CRIU failed: left behind %+v", all)
	}
}

// Without --detach, restore has the tree's exit status, and when the tree has
// ended without ever being swapped, its stub is of no use any more.
func TestRestoreWaitsForTheTree(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	t.Cleanup(func() { discardStubs(t) })
	r := rig.Begin(t, exec.Command(rig.Build(t).SPFS, "restore", "--images-dir", images,
		"--criu", rig.Build(t).CRIU, "--", "--root", c.Root))
	rig.Await(t, 20*time.Second, func() bool {
		all := rig.Statuses(t)
		return len(all) == 1 && len(all[0].Held) > 0
	}, "a tree that waits")
	c.Restored()
	rig.Kill(t, c.PID)
	if got := r.Wait(t); got.Status != 128+int(unix.SIGKILL) {
		t.Errorf("exit status %d, want that of the tree\n%s", got.Status, got.Stderr)
	}
	nothingLeft(t)
}

// A command of --mount that fails leaves the tree waiting, and says so; another
// one, by hand, frees it.
func TestRestoreWithAMountCommandThatFails(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{}, mnt[0]+":/mnt")
	images := dump(t, c)
	r := restoreCommand(t, c, images, "--mount", "/mnt=echo no such host >&2; false %m")
	if r.Status != 1 || !strings.Contains(r.Stderr, "no such host") {
		t.Errorf("exit status %d\n%s", r.Status, r.Stderr)
	}
	c.Restored()
	stub := stubBy(t, c.PID)
	again := rig.Mkdir(t, rig.Dir(t), "again")
	rig.Bindfs(t, data, again)
	swapOff(t, stub, data, again)
	c.Counter.CountsOn(50)
	c.Counter.Check()
	c.Counter.End(data)
}
