package fusestate

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func reader(t testing.TB) *Reader {
	t.Helper()
	r, err := Shared()
	if err != nil {
		t.Fatalf("loading the programs: %+v", err)
	}
	return r
}

// waitingReader is as older kernels have it.
func waitingReader(t testing.TB) *Reader {
	t.Helper()
	r, err := load(true)
	if err != nil {
		t.Fatalf("loading the programs for older kernels: %+v", err)
	}
	t.Cleanup(r.Close)
	return r
}

func read(t testing.TB, r *Reader, parts Parts) *State {
	t.Helper()
	s, err := r.Read(parts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func plain(uint64) initOut { return initOut{Major: 7, Minor: 31, MaxWrite: 4096} }

// withFiles is a server of a few nodes with numbers of their own.
func withFiles(t *testing.T) *server {
	s := serve(t, ",allow_other", plain)
	s.mu.Lock()
	defer s.mu.Unlock()
	page := uint64(unix.Getpagesize())
	for i, n := range []struct {
		name string
		mode uint32
	}{{"file", unix.S_IFREG | 0o644}, {"other", unix.S_IFREG | 0o600}, {"dir", unix.S_IFDIR | 0o755}, {"fifo", unix.S_IFIFO | 0o644}} {
		nodeid := uint64(0xabcd00000000 + i)
		s.nodes[n.name] = &served{nodeid, uint64(70 + i), attr{
			Ino: 0x1234500000000 + uint64(i), Mode: n.mode, Nlink: uint32(i), Size: 2000 * page,
		}}
	}
	next := uint64(0xf000000000000000)
	s.opens = func(name string) (uint64, uint32) {
		next++
		if name == "other" {
			return next, 2 // FOPEN_KEEP_CACHE
		}
		return next, 0
	}
	return s
}

func TestOpenFilesAreWhatTheDaemonSaid(t *testing.T) {
	server := withFiles(t)
	file, other, dir, fifo := server.path("file"), server.path("other"), server.path("dir"), server.path("fifo")
	c := startClient(t, "rdwr="+file, "seek=4321", "dup=", "append="+file, "rdonly="+other,
		"rdonly="+dir, "path="+other, "rdwr="+fifo)
	state := read(t, reader(t), Files)

	fd := func(i int) *File {
		for j := range state.Files {
			if f := &state.Files[j]; f.PID == c.pid && f.FD == c.FDs[i] {
				return f
			}
		}
		t.Fatalf("fd %d of the client is not in the state", c.FDs[i])
		return nil
	}
	fh := func(name string, i int) uint64 { return server.handles(name)[i] }
	for i, want := range []struct {
		name  string
		flags uint32
		pos   int64
		hasFH bool
		fh    uint64
		fopen uint32
	}{
		{"file", unix.O_RDWR, 4321, true, fh("file", 0), 0},
		{"file", unix.O_RDWR, 4321, true, fh("file", 0), 0},
		{"file", unix.O_WRONLY | unix.O_APPEND, 0, true, fh("file", 1), 0},
		{"other", unix.O_RDONLY, 0, true, fh("other", 0), 2},
		{"dir", unix.O_RDONLY, 0, true, fh("dir", 0), 0},
		{"other", unix.O_PATH, 0, false, 0, 0},
		{"fifo", unix.O_RDWR, 0, false, 0, 0},
	} {
		f, node := fd(i), server.named(want.name)
		got := fmt.Sprintln(f.ID, f.Generation, f.OrigIno, f.Links, f.Mode, f.Size, f.Node.Dev,
			f.Flags&^unix.O_LARGEFILE&^0o100000, f.Pos, f.HasFH, f.FH, f.FOpen, f.IsDir())
		expected := fmt.Sprintln(node.nodeid, node.generation, node.attr.Ino, node.attr.Nlink, node.attr.Mode, node.attr.Size, server.dev,
			want.flags, want.pos, want.hasFH, want.fh, want.fopen, want.name == "dir")
		if got != expected {
			t.Errorf("the client's descriptor %d (%s):\n got %s want %s", i, want.name, got, expected)
		}
		if f.Lookups == 0 {
			t.Errorf("%s was looked up 0 times", want.name)
		}
		if f.Conn != server.device(t, state).Conn {
			t.Errorf("%s has another connection than its daemon", want.name)
		}
		if f.Mount == 0 || f.Mount != fd(0).Mount || f.Table != fd(0).Table {
			t.Errorf("%s: mount %d, table %#x, the first has %d and %#x", want.name, f.Mount, f.Table, fd(0).Mount, fd(0).Table)
		}
	}
	if fd(0).Open.Address != fd(1).Open.Address || fd(0).Open.Address == fd(2).Open.Address {
		t.Errorf("descriptions: two dups %#x and %#x, another one %#x", fd(0).Open.Address, fd(1).Open.Address, fd(2).Open.Address)
	}
	if fd(0).Node.Address != fd(2).Node.Address || fd(0).Node.Address == fd(3).Node.Address {
		t.Error("the addresses of the inodes don't tell the files apart")
	}
}

func TestOwnFilesAreLeftOut(t *testing.T) {
	server := withFiles(t)
	own, err := os.OpenFile(server.path("other"), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	client := startClient(t, "rdonly="+server.path("file"))
	for _, parts := range []Parts{Files, Files | NotOwn} {
		found := map[int]bool{}
		for _, f := range read(t, reader(t), parts).Files {
			found[f.PID] = true
		}
		if want := parts == Files; found[os.Getpid()] != want || !found[client.pid] {
			t.Errorf("with parts %b, files were found: our own %v, want %v; a client's %v", parts, found[os.Getpid()], want, found[client.pid])
		}
	}
}

func TestOthersTellWhatElseIsOpened(t *testing.T) {
	r := reader(t)
	second := startClient(t)
	others := func(pid int) Others {
		s, err := r.Read(Files, pid, second.pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Others) != 2 {
			t.Fatalf("of 2 processes, the others are %v", s.Others)
		}
		return s.Others[pid]
	}
	before := others(os.Getpid())
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	one := others(os.Getpid())
	unix.Close(fd)
	after := others(os.Getpid())
	// The mix is another one each time: the iterator that we read is one, too.
	if one.Count != before.Count+1 || after.Count != before.Count {
		t.Errorf("before %v, with one more %v, after %v", before, one, after)
	}
	for _, n := range []uint64{3, 4} {
		c := startClient(t, fmt.Sprint("epoll=", n))
		if a, b := others(c.pid), others(c.pid); a != b || a.Count < n {
			t.Errorf("of a client that has %d and does nothing, the others are %v, then %v", n, a, b)
		}
	}
}

func TestLocksAreSeen(t *testing.T) {
	server := withFiles(t)
	c := startClient(t, "rdwr="+server.path("file"), "lock=", "rdwr="+server.path("other"))
	seen := map[int]bool{}
	for _, f := range read(t, reader(t), Files).Files {
		if f.PID == c.pid {
			seen[f.FD] = f.Locked
		}
	}
	if !seen[c.FDs[0]] || seen[c.FDs[1]] {
		t.Errorf("the first of %v is locked, seen locked are %v", c.FDs, seen)
	}
}

// What is looked up again counts again, and the daemon hears of each.
func TestLookupsAreCounted(t *testing.T) {
	server := withFiles(t)
	r := reader(t)
	c := startClient(t, "path="+server.path("file"))
	lookups := func() uint64 {
		for _, f := range read(t, r, Files).Files {
			if f.PID == c.pid && f.FD == c.FDs[0] {
				return f.Lookups
			}
		}
		t.Fatal("the client's descriptor is not there")
		return 0
	}
	before := lookups()
	for range 3 { // entries are valid for no time
		startClient(t, "path="+server.path("file"))
	}
	if after := lookups(); after != before+3 {
		t.Errorf("%d lookups after %d and 3 more", after, before)
	}
}

func TestMappings(t *testing.T) {
	server := withFiles(t)
	const few, many = 3, 1000
	c := startClient(t, "rdonly="+server.path("other"), fmt.Sprint("map=", few))
	manyC := startClient(t, "rdwr="+server.path("file"), fmt.Sprint("map=", many))
	for name, reader := range map[string]func(testing.TB) *Reader{"now": reader, "older kernel": waitingReader} {
		t.Run(name, func(t *testing.T) {
			state := read(t, reader(t), All)
			for _, want := range []struct {
				c     *client
				name  string
				pages int
			}{{c, "other", few}, {manyC, "file", many}} {
				var starts []uint64
				for i := range state.Mappings {
					m := &state.Mappings[i]
					if m.PID != want.c.pid {
						continue
					}
					starts = append(starts, m.Start)
					node := server.named(want.name)
					if m.ID != node.nodeid || !m.HasFH || m.FH != server.handles(want.name)[0] || m.Node.Dev != server.dev {
						t.Fatalf("a mapping of %s: %+v", want.name, m)
					}
					page := uint64(unix.Getpagesize())
					j := slices.Index(want.c.Addresses, m.Start)
					if j < 0 || m.End != m.Start+page || m.Offset != uint64(2*j)*page {
						t.Fatalf("mapping %#x-%#x of offset %#x was never made", m.Start, m.End, m.Offset)
					}
				}
				if !slices.Equal(starts, slices.Sorted(slices.Values(want.c.Addresses))) {
					t.Errorf("%s: %d mappings were found, %d made", want.name, len(starts), len(want.c.Addresses))
				}
			}
			if slices.Contains(state.Busy, c.pid) || slices.Contains(state.Busy, manyC.pid) {
				t.Errorf("busy: %v", state.Busy)
			}
		})
	}
}

func TestMappingsOfSome(t *testing.T) {
	server := withFiles(t)
	a := startClient(t, "rdonly="+server.path("other"), "map=3")
	b := startClient(t, "rdonly="+server.path("other"), "map=2")
	for name, reader := range map[string]func(testing.TB) *Reader{"now": reader, "older kernel": waitingReader} {
		s, err := reader(t).Read(MappingsOf|Files, a.pid)
		if err != nil {
			t.Fatal(err)
		}
		of := map[int]int{}
		for _, m := range s.Mappings {
			of[m.PID]++
		}
		if len(of) != 1 || of[a.pid] != 3 {
			t.Errorf("%s: asked for the 3 mappings of %d, found are %v (%d has 2)", name, a.pid, of, b.pid)
		}
	}
}

func TestHeldLockKeepsNobodyWaiting(t *testing.T) {
	server := withFiles(t)
	defer close(server.writeOn)
	r := reader(t)
	c := startClient(t, "rdwr="+server.path("file"), "stick=")
	<-server.writes // it holds the lock now
	done := make(chan *State, 1)
	go func() {
		s, err := r.Read(All)
		if err != nil {
			t.Error(err)
		}
		done <- s
	}()
	select {
	case s := <-done:
		if s != nil && !slices.Contains(s.Busy, c.pid) {
			t.Errorf("a task of %d holds its mmap_lock; busy are %v", c.pid, s.Busy)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still waiting after 5 s")
	}
}

func TestPlaces(t *testing.T) {
	server := withFiles(t)
	c := startClient(t, "chdir="+server.path("dir"))
	var found []Place
	for _, p := range read(t, reader(t), Places).Places {
		if p.PID == c.pid {
			found = append(found, p)
		}
	}
	if len(found) != 1 || found[0].Kind != Cwd || found[0].ID != server.named("dir").nodeid || found[0].TID != c.pid {
		t.Errorf("the client's working directory is dir; found %+v", found)
	}
}

// Each flag by itself comes back as itself.
func TestInitFlagsComeBack(t *testing.T) {
	r := reader(t)
	const maxPages, ext, passthrough, readahead = 1 << 22, 1 << 30, 1 << 37, 8192
	const readdirplus, readdirplusAuto = 1 << 13, 1 << 14
	tried := 0
	for bit := range 43 {
		flag := uint64(1) << bit
		if flag&(known|1<<2|1<<11|1<<17|1<<24|1<<35|1<<39) == 0 {
			continue
		}
		flags := flag
		if flag == readdirplusAuto {
			flags |= readdirplus // without which it means nothing
		}
		offered := false
		s := serve(t, ",default_permissions", func(can uint64) initOut {
			offered = can&flag != 0
			out := initOut{Major: 7, Minor: 36, Flags: uint32(flags), MaxReadahead: readahead, MaxWrite: 12288,
				MaxBackground: 33, CongestionThreshold: 22, TimeGran: 1000}
			if flag >= 1<<32 {
				out.Flags |= ext
				out.Flags2 = uint32(flag >> 32)
			}
			if flag == passthrough {
				out.MaxStackDepth = 1
			}
			if flag == maxPages {
				out.MaxPages = 77
			}
			return out
		})
		if !offered {
			t.Logf("the kernel does not offer flag %d", bit)
			continue
		}
		tried++
		state := read(t, r, Files)
		d := s.device(t, state)
		c := state.Conn(d.Conn)
		if c == nil {
			t.Fatalf("no connection of device %+v", d)
		}
		want := Conn{
			Address: d.Conn, Dev: s.dev, Connected: true, Initialized: true, Mounted: true,
			Flags: flags&known | maxPages, Minor: 36, MaxWrite: 12288, MaxRead: c.MaxRead, MaxPages: 32,
			MaxReadahead: readahead, MaxBackground: 33, CongestionThreshold: 22, TimeGran: 1000,
			DefaultPermissions: true, BlockSize: 4096, Unsupported: c.Unsupported,
		}
		switch flag {
		case passthrough:
			want.MaxStackDepth = c.MaxStackDepth
		case maxPages:
			want.MaxPages = 77
		}
		if *c != want {
			t.Errorf("flag %d:\n got %+v\nwant %+v", bit, *c, want)
		}
		if d.Number() != c.Number() || d.Number() != unix.Minor(s.dev) || state.ConnOf(s.dev) != c {
			t.Errorf("flag %d: device %d, connection %d, mount %d", bit, d.Number(), c.Number(), unix.Minor(s.dev))
		}
	}
	if tried < 25 {
		t.Errorf("only %d flags were tried", tried)
	}
}

func TestUnsupportedOperationsAndOptions(t *testing.T) {
	s := serve(t, ",allow_other,max_read=8192", plain)
	// It answers STATFS's kind with ENOSYS: the kernel remembers some.
	fd, err := unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var buf [64]byte
	if _, err := unix.Fgetxattr(fd, "user.x", buf[:]); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal("getxattr:", err)
	}
	state := read(t, reader(t), Files)
	c := state.ConnOf(s.dev)
	if c == nil || c.Unsupported&(1<<22) == 0 || c.Unsupported&(1<<14) != 0 {
		t.Errorf("GETXATTR was answered with ENOSYS, OPEN was not: %+v", c)
	}
	if !c.AllowOther || c.DefaultPermissions || c.MaxRead != 8192 {
		t.Errorf("mounted with allow_other and max_read=8192: %+v", c)
	}
}

func TestDeviceBeforeTheMount(t *testing.T) {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, d := range read(t, reader(t), Files).Devices {
		if d.PID == os.Getpid() && d.FD == int(f.Fd()) {
			if d.Conn != 0 || d.Dev != 0 {
				t.Errorf("not mounted yet: %+v", d)
			}
			return
		}
	}
	t.Error("the open /dev/fuse was not found")
}

func TestNoBPFIsSaid(t *testing.T) {
	t.Setenv(noBPF, "1")
	if _, err := Load(); !errors.Is(err, ErrNoBPF) {
		t.Errorf("got %v, want ErrNoBPF", err)
	}
}

func BenchmarkRead(b *testing.B) {
	r := reader(b)
	for _, p := range []struct {
		name  string
		parts Parts
	}{{"files", Files}, {"mappings", Mappings}, {"places", Places}, {"all", All}} {
		b.Run(p.name, func(b *testing.B) {
			for range b.N {
				read(b, r, p.parts)
			}
		})
	}
}

// The verifier goes through the programs each time that they are loaded, which is what
// most of the loading consists of. It should not go through a function at each call.
func TestProgramsAreSoonVerified(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		r, err := load(waiting)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		for name, p := range r.programs.Programs {
			info, err := p.Info()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			const most = 8000
			if n, known := info.VerifiedInstructions(); known && n > most {
				t.Errorf("%s: the verifier goes through %d instructions, want at most %d", name, n, most)
			}
		}
	}
}
