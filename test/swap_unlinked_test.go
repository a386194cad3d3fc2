package test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// servedTwice is bindfsTwice with any daemon.
func servedTwice(t *testing.T, serve func(t rig.T, dir, at string) *rig.Daemon) *mounts {
	t.Helper()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	m.oldProc, m.newProc = serve(t, m.data, m.old), serve(t, m.data, m.new)
	m.note(t)
	return m
}

func (p unlinker) unlink(path string) { p.Must(unix.SYS_UNLINKAT, unix.AT_FDCWD, path, 0) }

// unlinker is a puppet that unlinks.
type unlinker struct{ *rig.Puppet }

// bindfs renames files that are open and unlinked; go-fuse's loopback unlinks
// them.
func eachDaemon(t *testing.T, test func(t *testing.T, m *mounts)) {
	for name, serve := range map[string]func(rig.T, string, string) *rig.Daemon{
		"bindfs":   func(t rig.T, dir, at string) *rig.Daemon { return rig.Bindfs(t, dir, at) },
		"loopback": rig.Loopback,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, servedTwice(t, serve))
		})
	}
}

// noneMade checks that no name of a file that was made is left beneath.
func (m *mounts) noneMade(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(m.data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".spfs-") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestSwapKeepsUnlinkedFiles(t *testing.T) {
	t.Parallel()
	eachDaemon(t, func(t *testing.T, m *mounts) {
		const size = 3<<20 + 17
		content := make([]byte, size)
		copy(content, pages(20))
		copy(content[2<<20:], pages(100)) // behind a hole
		copy(content[size-4:], "tail")
		m.put(t, "f", string(content))
		file := m.data + "/f"
		for _, err := range []error{
			os.Chown(file, 1234, 2345), unix.Chmod(file, 0o4751),
			unix.Setxattr(file, "user.spfs", []byte("kept"), 0),
			os.WriteFile(m.data+"/still", []byte("still"), 0o600),
			unix.UtimesNano(m.data+"/still", []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_100_000_000, Nsec: 5000}}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		p, other := rig.StartPuppet(t), rig.StartPuppet(t)
		path := m.old + "/f"
		r := p.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		rw := other.Open(path, unix.O_RDWR)
		a := p.Open(path, unix.O_WRONLY|unix.O_APPEND)
		o := p.Open(path, unix.O_PATH)
		dup := p.Dup(r)
		p.Seek(r, 4097, unix.SEEK_SET)
		shared := other.Mmap(rw, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		private := p.Mmap(r, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		p.Store(private+page, []byte("mine"))
		still := p.Open(m.old+"/still", unix.O_RDONLY)
		unlinker{p}.unlink(m.old + "/still")
		unlinker{p}.unlink(path)
		other.Store(shared+100, []byte("stored after")) // not yet written
		copy(content[100:], "stored after")
		p.Fstat(r)

		if rep := m.swap(t); rep.FDs != 6 || rep.Mappings != 2 {
			t.Errorf("reported %d descriptors and %d mappings", rep.FDs, rep.Mappings)
		}
		m.noneMade(t)
		for _, x := range []struct {
			p  *rig.Puppet
			fd int
		}{{p, r}, {other, rw}, {p, a}, {p, o}, {p, dup}} {
			if got := x.p.Fstat(x.fd).Dev; got != m.newDev {
				t.Errorf("fd %d is on %s", x.fd, devName(got))
			}
		}
		st := p.Fstat(r)
		if st.Size != size || st.Mode != unix.S_IFREG|0o4751 || st.Uid != 1234 || st.Gid != 2345 || st.Ino != other.Fstat(rw).Ino || st.Ino != p.Fstat(a).Ino {
			t.Errorf("the file is %+v", st)
		}
		if st.Blocks*512 > 2<<20 {
			t.Errorf("%d blocks: the hole is filled", st.Blocks)
		}
		if got := p.GetFlags(r) & unix.O_NOFOLLOW; got == 0 {
			t.Error("O_NOFOLLOW is lost")
		}
		if st := p.Fstat(still); st.Size != 5 || st.Mtim.Sec != 1_100_000_000 || st.Mtim.Nsec != 5000 {
			t.Errorf("the file that nobody wrote to is %+v", st)
		}
		value := make([]byte, 10)
		if n, err := p.Call(unix.SYS_FGETXATTR, r, "user.spfs", value, len(value)); m.renames(t) && (err != nil || string(value[:n]) != "kept") {
			t.Errorf("the extended attribute is %q (%v)", value, err)
		}
		if got := p.Offset(dup); got != 4097 {
			t.Errorf("the position is %d", got)
		}
		p.Seek(r, 0, unix.SEEK_SET)
		var got bytes.Buffer
		for got.Len() < size {
			s := p.Read(r, 64<<10)
			if s == "" {
				break
			}
			got.WriteString(s)
		}
		if !bytes.Equal(got.Bytes(), content) {
			t.Errorf("the content is another: %d bytes", got.Len())
		}
		// Still one file for all.
		p.Write(a, "appended")
		other.Store(shared+page+10, []byte("stored"))
		other.Must(unix.SYS_MSYNC, shared, 4*page, unix.MS_SYNC)
		other.Seek(rw, page+10, unix.SEEK_SET)
		if got := other.Read(rw, 6); got != "stored" {
			t.Errorf("read %q of what was stored", got)
		}
		p.Seek(r, size, unix.SEEK_SET)
		if got := p.Read(r, 20); got != "appended" {
			t.Errorf("read %q of what was appended", got)
		}
		if got := string(p.Load(private+page, 6)); got != "minebb" {
			t.Errorf("the private page holds %q", got)
		}
		if got := string(p.Load(private+2*page, 4)); got != "cccc" {
			t.Errorf("the private mapping holds %q", got)
		}
		for _, fd := range []int{r, a, o, dup, still} {
			p.Close(fd)
		}
		p.Must(unix.SYS_MUNMAP, private, 4*page)
		other.Must(unix.SYS_MUNMAP, shared, 4*page)
		other.Close(rw)
		rig.Await(t, 10e9, func() bool { e, _ := os.ReadDir(m.data); return len(e) == 0 }, "nothing is left in %s", m.data)
	})
}

// renames says whether the daemons rename what is unlinked and open, and so can
// still tell of it by name.
func (m *mounts) renames(t *testing.T) bool {
	t.Helper()
	name, err := os.ReadFile("/proc/" + itoa(m.newProc.PID) + "/comm")
	if err != nil {
		t.Fatal(err)
	}
	return string(name) == "bindfs\n"
}

func TestSwapKeepsRenamedFiles(t *testing.T) {
	t.Parallel()
	eachDaemon(t, func(t *testing.T, m *mounts) {
		p := rig.StartPuppet(t)
		rename := func(from, to string) {
			p.Must(unix.SYS_RENAMEAT2, unix.AT_FDCWD, m.old+from, unix.AT_FDCWD, m.old+to, 0)
		}
		for _, f := range []string{"moved", "target", "source", "dir/inner"} {
			m.put(t, f, pages(1)+f)
		}
		moved := p.Open(m.old+"/moved", unix.O_RDWR)
		target := p.Open(m.old+"/target", unix.O_RDWR)
		source := p.Open(m.old+"/source", unix.O_RDWR)
		inner := p.Open(m.old+"/dir/inner", unix.O_RDONLY)
		mapped := p.Mmap(moved, page, unix.PROT_READ, unix.MAP_SHARED)
		p.Chdir(m.old + "/dir")
		rename("/moved", "/dir/elsewhere")
		rename("/source", "/target") // takes target's name away
		rename("/dir", "/dir2")
		m.swap(t)
		m.moved(t, p, moved, "dir2/elsewhere")
		m.moved(t, p, source, "target")
		m.moved(t, p, inner, "dir2/inner")
		for fd, want := range map[int]string{moved: "moved", target: "target", source: "source", inner: "dir/inner"} {
			if got := p.Read(fd, 2*page); got != pages(1)+want {
				t.Errorf("of %s is read %.20q…%q", want, got, got[min(page, len(got)):])
			}
		}
		if got := string(p.Load(mapped, 3)); got != "aaa" {
			t.Errorf("the mapping holds %q", got)
		}
		if got := p.Getcwd(); got != m.old+"/dir2" {
			t.Errorf("the working directory is %s", got)
		}
		p.Seek(source, 0, unix.SEEK_SET)
		p.Write(source, "written")
		m.holds(t, "target", "written"+pages(1)[7:]+"source")
	})
}

func TestSwapThatCannotMakeUnlinkedFilesAnew(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR|unix.O_CREAT)
	p.Write(fd, pages(20))
	unlinker{p}.unlink(m.old + "/f")
	// Something with its name is there by now, and the new mount has no room.
	rig.Unmount(t, m.new)
	m.otherData = rig.Mkdir(t, parent(m.data), "other-data")
	if err := unix.Mount("small", m.otherData, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rig.Unmount(t, m.otherData) })
	rig.Write(t, m.otherData+"/f", "another")
	rig.Bindfs(t, m.otherData, m.new)
	m.note(t)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "unlinked", "no space")
	})
	if entries, err := os.ReadDir(m.otherData); err != nil || len(entries) != 1 {
		t.Errorf("left on the new mount: %v (%v)", entries, err)
	}
	p.Seek(fd, 0, unix.SEEK_SET)
	if got := p.Read(fd, 20*page); got != pages(20) {
		t.Error("the content is another")
	}
	// With room, it is made, and the other file of its name left alone.
	if err := unix.Mount("", m.otherData, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	m.swap(t)
	p.Seek(fd, 0, unix.SEEK_SET)
	if got := p.Read(fd, 20*page); got != pages(20) {
		t.Error("the content is another after the swap")
	}
	if b, err := os.ReadFile(m.otherData + "/f"); err != nil || string(b) != "another" {
		t.Errorf("the file of that name holds %q (%v)", b, err)
	}
}

func TestSwapOfUnlinkedFileFromDeadDaemon(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR|unix.O_CREAT)
	unlinker{p}.unlink(m.old + "/f")
	m.oldProc.Kill()
	m.unchangedBy(t, p, func() {
		for _, command := range []string{"plan", "run"} {
			rig.Run(t, rig.Build(t).Swap, command, "--from", m.old, "--to", m.new).Refuses(t, itoa(p.PID), "fd "+itoa(fd), "unlinked")
		}
	})
}

// The kernel does not know of another name, the daemon does: plan refuses if it
// may ask, run asks.
func TestSwapOfUnlinkedFileWithAnotherName(t *testing.T) {
	t.Parallel()
	eachDaemon(t, func(t *testing.T, m *mounts) {
		p := rig.StartPuppet(t)
		fd := p.Open(m.old+"/f", unix.O_RDWR|unix.O_CREAT)
		p.Must(unix.SYS_LINKAT, unix.AT_FDCWD, m.old+"/f", unix.AT_FDCWD, m.old+"/other", 0)
		unlinker{p}.unlink(m.old + "/f")
		m.unchangedBy(t, p, func() {
			for _, command := range [][]string{{"plan", "--ask-old"}, {"run"}} {
				rig.Run(t, rig.Build(t).Swap, append(command, "--from", m.old, "--to", m.new)...).Refuses(t, itoa(p.PID), "fd "+itoa(fd))
			}
		})
		m.noneMade(t)
	})
}
