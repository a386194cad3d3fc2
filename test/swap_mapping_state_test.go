package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// vmFlags is what the kernel says of each mapping under dir, by address.
func vmFlags(t *testing.T, p *rig.Puppet, dir string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]string{}
	at := ""
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		switch {
		case len(f) > 1 && strings.Contains(f[0], "-"):
			at = ""
			if len(f) > 5 && strings.HasPrefix(f[5], dir) {
				at = f[0]
			}
		case at != "" && len(f) > 0 && f[0] == "VmFlags:":
			flags[at] = strings.Join(f[1:], " ")
		}
	}
	return flags
}

// sameFlags checks that each mapping has the flags that it had. The soft-dirty
// mark says nothing to the process.
func sameFlags(t *testing.T, p *rig.Puppet, dir string, before map[string]string) {
	t.Helper()
	after := vmFlags(t, p, dir)
	for at, flags := range before {
		if got := after[at]; got != flags {
			t.Errorf("mapping %s has the flags %q, had %q", at, got, flags)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d mappings, had %d", len(after), len(before))
	}
}

// told is a way to map a file and say something of the mapping, and the VmFlag
// of that.
type told struct {
	name  string
	flags int // of mmap
	tell  func(p *rig.Puppet, addr uint64, size int)
	shows string
}

func advised(name string, advice int, shows string) []told {
	tell := func(p *rig.Puppet, addr uint64, size int) { p.Must(unix.SYS_MADVISE, addr, size, advice) }
	return []told{
		{name + ", shared", unix.MAP_SHARED, tell, shows},
		{name + ", private", unix.MAP_PRIVATE, tell, shows},
	}
}

func lockedBy(name string, flags int, shows string) []told {
	tell := func(p *rig.Puppet, addr uint64, size int) { p.Must(unix.SYS_MLOCK2, addr, size, flags) }
	return []told{
		{name + ", shared", unix.MAP_SHARED, tell, shows},
		{name + ", private", unix.MAP_PRIVATE, tell, shows},
	}
}

func mappingStates() []told {
	const onFault = 1 // MLOCK_ONFAULT
	var all []told
	for _, list := range [][]told{
		advised("sequential", unix.MADV_SEQUENTIAL, "sr"),
		advised("random", unix.MADV_RANDOM, "rr"),
		advised("not to be forked", unix.MADV_DONTFORK, "dc"),
		advised("not to be dumped", unix.MADV_DONTDUMP, "dd"),
		advised("of huge pages", unix.MADV_HUGEPAGE, "hg"),
		advised("of small pages", unix.MADV_NOHUGEPAGE, "nh"),
		advised("mergeable", unix.MADV_MERGEABLE, "mg")[1:], // says nothing of shared ones
		lockedBy("locked", 0, "lo"),
		lockedBy("locked as faults come", onFault, "lf"),
		{
			{"without reserve", unix.MAP_PRIVATE | unix.MAP_NORESERVE, nil, "nr"},
			{"plain", unix.MAP_SHARED, nil, "sh"},
		},
	} {
		all = append(all, list...)
	}
	return all
}

func TestSwapKeepsMappingStates(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	const n = 4
	p := rig.StartPuppet(t)
	want := map[uint64][]byte{}
	for i, c := range mappingStates() {
		name := fmt.Sprintf("f%d", i)
		m.put(t, name, pages(n))
		fd := p.Open(filepath.Join(m.old, name), unix.O_RDWR)
		addr := p.Mmap(fd, n*page, unix.PROT_READ|unix.PROT_WRITE, c.flags)
		p.Close(fd)
		p.Store(addr+10, []byte("before"))
		if c.tell != nil {
			c.tell(p, addr, n*page)
		}
		p.Store(addr+2*page, []byte("after"))
		want[addr] = []byte(pages(n))
		copy(want[addr][10:], "before")
		copy(want[addr][2*page:], "after")
		shown := false
		for at, flags := range vmFlags(t, p, m.old) {
			shown = shown || strings.HasPrefix(at, fmt.Sprintf("%x-", addr)) && strings.Contains(flags, c.shows)
		}
		if !shown {
			t.Errorf("%s: the kernel does not say %s", c.name, c.shows)
		}
	}
	// Told everything at once, and of a part only.
	m.put(t, "all", pages(n))
	fd := p.Open(m.old+"/all", unix.O_RDWR)
	addr := p.Mmap(fd, n*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	want[addr] = []byte(pages(n))
	for _, advice := range []int{unix.MADV_RANDOM, unix.MADV_DONTDUMP, unix.MADV_DONTFORK, unix.MADV_NOHUGEPAGE, unix.MADV_MERGEABLE} {
		p.Must(unix.SYS_MADVISE, addr+page, page, advice)
	}
	p.Must(unix.SYS_MLOCK, addr+page, page)
	lockedBefore := lockedBytes(t, p)
	before, flags := mapsOf(t, p, m.old), vmFlags(t, p, m.old)

	m.swap(t)
	sameMaps(t, p, m.old, before)
	sameFlags(t, p, m.old, flags)
	if got := lockedBytes(t, p); got != lockedBefore {
		t.Errorf("%s are locked, were %s", got, lockedBefore)
	}
	for addr, content := range want {
		if got := p.Load(addr, n*page); !bytes.Equal(got, content) {
			t.Errorf("the mapping at %x holds another content", addr)
		}
	}
}

// lockedBytes is VmLck.
func lockedBytes(t *testing.T, p *rig.Puppet) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, "VmLck:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatal("no VmLck")
	return ""
}

// A process that all of its locked memory is just allowed: what is locked twice
// counts twice.
func TestSwapKeepsLocksAtTheirLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		limit int // in pages
		fails bool
	}{
		{"room for two", 16, false},
		{"room for one", 8, false},
		{"lowered since", 4, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := publicTwice(t)
			m.put(t, "f", pages(8))
			p := rig.StartPuppet(t, asNobody(t))
			fd := p.Open(m.old+"/f", unix.O_RDWR)
			addr := p.Mmap(fd, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
			shared := p.Mmap(fd, page, unix.PROT_READ, unix.MAP_SHARED)
			p.Must(unix.SYS_MLOCK, addr, 4*page)
			p.Must(unix.SYS_MLOCK2, addr+4*page, 4*page, 1)
			p.Store(addr+page, []byte("dirty"))
			limit := binary.NativeEndian.AppendUint64(nil, uint64(c.limit*page))
			limit = append(limit, limit...)
			p.Must(unix.SYS_SETRLIMIT, unix.RLIMIT_MEMLOCK, limit)
			before, locked := vmFlags(t, p, m.old), lockedBytes(t, p)
			if c.fails {
				m.unchangedBy(t, p, func() {
					rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Refuses(t, itoa(p.PID), "locked memory", "RLIMIT_MEMLOCK")
				})
			} else {
				m.swap(t)
			}
			sameFlags(t, p, m.old, before)
			if got := lockedBytes(t, p); got != locked {
				t.Errorf("%s are locked, were %s", got, locked)
			}
			if got := string(p.Load(addr+page, 6)); got != "dirtyb" {
				t.Errorf("the locked page holds %q", got)
			}
			p.Load(shared, page)
		})
	}
}

// mlockall(MCL_FUTURE) locks what the swap maps as well: what is not locked of
// the old file is not of the new one.
func TestSwapOfProcessThatLocksAllToCome(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(8))
	p := rig.StartPuppet(t)
	p.Must(unix.SYS_MLOCKALL, unix.MCL_FUTURE)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	p.Mmap(fd, 4*page, unix.PROT_READ, unix.MAP_SHARED)
	free := p.Mmap(fd, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	p.Must(unix.SYS_MUNLOCK, free, 8*page)
	before, locked := vmFlags(t, p, m.old), lockedBytes(t, p)

	m.swap(t)
	sameFlags(t, p, m.old, before)
	if got := lockedBytes(t, p); got != locked {
		t.Errorf("%s are locked, were %s", got, locked)
	}
}

// asNobody runs a puppet as a user without capabilities.
func asNobody(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	rig.Public(t, parent(rig.Build(t).Puppet))
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
		rig.Public(t, parent(cmd.Args[1]))
		if err := os.Chmod(cmd.Args[1], 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// publicTwice is bindfsTwice for every user.
func publicTwice(t *testing.T) *mounts {
	t.Helper()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	rig.Public(t, m.data)
	if err := os.Chmod(m.data, 0o777); err != nil {
		t.Fatal(err)
	}
	const open = "--perms=a+rwX"
	m.oldProc = rig.Bindfs(t, m.data, m.old, open, "-o", "allow_other")
	m.newProc = rig.Bindfs(t, m.data, m.new, open, "-o", "allow_other")
	m.note(t)
	return m
}
