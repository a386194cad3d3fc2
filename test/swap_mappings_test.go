package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

const page = 4096

// mapsOf is what /proc says of a process's mappings of files under dir:
// addresses, protections, offsets and paths, not devices and inode numbers.
func mapsOf(t *testing.T, p *rig.Puppet, dir string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 5 && strings.HasPrefix(f[5], dir) {
			lines = append(lines, strings.Join([]string{f[0], f[1], f[2], f[5]}, " "))
		}
	}
	return lines
}

func sameMaps(t *testing.T, p *rig.Puppet, dir string, before []string) {
	t.Helper()
	after := mapsOf(t, p, dir)
	if strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("mappings were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// pages is n pages, the i-th full of a letter of its own.
func pages(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(string(rune('a'+i%26)), page))
	}
	return b.String()
}

func TestSwapKeepsSharedMappings(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(8))
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	addr := p.Mmap(fd, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	p.Store(addr+10, []byte("before"))
	p.Close(fd) // the mapping alone keeps the file
	child := p.Spawn(fork)
	ro := p.Open(m.old+"/f", unix.O_RDONLY)
	p.Mmap(ro, page, unix.PROT_READ, unix.MAP_SHARED)
	before := mapsOf(t, p, m.old)

	if r := m.swap(t); r.Mappings != 3 {
		t.Errorf("reported %d mappings, want 3", r.Mappings)
	}
	sameMaps(t, p, m.old, before)
	want := []byte(pages(8))
	copy(want[10:], "before")
	if !bytes.Equal(p.Load(addr, 8*page), want) {
		t.Error("the mapping's content changed")
	}
	child.Store(addr+5*page, []byte("after"))
	copy(want[5*page:], "after")
	if !bytes.Equal(p.Load(addr, 8*page), want) {
		t.Error("what the child stored is not seen by its parent")
	}
	p.Must(unix.SYS_MSYNC, addr, 8*page, unix.MS_SYNC)
	m.holds(t, "f", string(want))
}

func TestSwapKeepsPrivateMappings(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	const n = 64
	m.put(t, "f", pages(n))
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	addr := p.Mmap(fd, n*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	p.Close(fd)
	want := []byte(pages(n))
	dirty := func(at int, s string) {
		p.Store(addr+uint64(at), []byte(s))
		copy(want[at:], s)
	}
	dirty(0, "first page")
	dirty(page-3, "over a boundary")
	dirty(n*page-4, "last")
	for i := 20; i < 40; i += 3 {
		dirty(i*page+100, fmt.Sprintf("page %d", i))
	}
	child := p.Spawn(fork) // shares the dirty pages, copy on write
	childWant := bytes.Clone(want)
	child.Store(addr+50*page, []byte("the child's"))
	copy(childWant[50*page:], "the child's")
	// Pieces with protections of their own, dirty pages under each.
	p.Must(unix.SYS_MPROTECT, addr+20*page, page, unix.PROT_READ)
	p.Must(unix.SYS_MPROTECT, addr+23*page, page, unix.PROT_NONE)
	p.Must(unix.SYS_MPROTECT, addr+26*page, page, unix.PROT_READ|unix.PROT_EXEC)
	p.Must(unix.SYS_MUNMAP, addr+29*page, 2*page)
	before := mapsOf(t, p, m.old)

	m.swap(t)
	sameMaps(t, p, m.old, before)
	p.Must(unix.SYS_MPROTECT, addr+23*page, page, unix.PROT_READ)
	for i := range n {
		if i == 29 || i == 30 {
			continue
		}
		if got := p.Load(addr+uint64(i)*page, page); !bytes.Equal(got, want[i*page:][:page]) {
			t.Errorf("page %d holds %.30q, want %.30q", i, got, want[i*page:])
		}
	}
	if got := child.Load(addr, 28*page); !bytes.Equal(got, childWant[:28*page]) {
		t.Error("the child's pages changed")
	}
	if got := child.Load(addr+50*page, page); !bytes.Equal(got, childWant[50*page:][:page]) {
		t.Errorf("the child's own page holds %.30q", got)
	}
	m.holds(t, "f", pages(n))
	if got := p.Load(addr+50*page, 3); string(got) != string(want[50*page:][:3]) {
		t.Errorf("the child's store came to its parent: %q", got)
	}
}

func TestSwapKeepsPartsOfFilesMapped(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(10)+"tail")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	part := uint64(p.Must(unix.SYS_MMAP, 0, 3*page, unix.PROT_READ, unix.MAP_SHARED, fd, 4*page))
	tail := uint64(p.Must(unix.SYS_MMAP, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE, fd, 10*page))
	p.Store(tail+2, []byte("XY"))
	before := mapsOf(t, p, m.old)

	m.swap(t)
	sameMaps(t, p, m.old, before)
	if got := string(p.Load(part, 3*page)); got != pages(10)[4*page:7*page] {
		t.Errorf("the part holds %.20q…", got)
	}
	if got := string(p.Load(tail, 6)); got != "taXY\x00\x00" {
		t.Errorf("the tail holds %q", got)
	}
	// It was mapped by a descriptor open for writing, and may still become writable.
	p.Must(unix.SYS_MPROTECT, part, 3*page, unix.PROT_READ|unix.PROT_WRITE)
	p.Store(part, []byte("written"))
	p.Must(unix.SYS_MSYNC, part, page, unix.MS_SYNC)
	m.holds(t, "f", pages(4)+"written"+pages(10)[4*page+7:]+"tail")
}

func TestSwapKeepsWhatMayNotBeWritten(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(1))
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	addr := p.Mmap(fd, page, unix.PROT_READ, unix.MAP_SHARED)

	m.swap(t)
	if _, err := p.Call(unix.SYS_MPROTECT, addr, page, unix.PROT_READ|unix.PROT_WRITE); err != unix.EACCES {
		t.Errorf("a shared mapping of a file open for reading became writable: %v", err)
	}
}

func TestSwapOfManyMappings(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	var at []uint64
	for i := range 200 {
		name := fmt.Sprintf("f%d", i)
		m.put(t, name, strings.Repeat(name+" ", 1000))
		fd := p.Open(filepath.Join(m.old, name), unix.O_RDWR)
		flags := unix.MAP_SHARED
		if i%2 == 0 {
			flags = unix.MAP_PRIVATE
		}
		at = append(at, p.Mmap(fd, page, unix.PROT_READ|unix.PROT_WRITE, flags))
		p.Store(at[i], []byte("dirty"))
		p.Close(fd)
	}
	before := mapsOf(t, p, m.old)
	if r := m.swap(t); r.Mappings != 200 {
		t.Errorf("reported %d mappings, want 200", r.Mappings)
	}
	sameMaps(t, p, m.old, before)
	for i, addr := range at {
		want := "dirty" + strings.Repeat(fmt.Sprintf("f%d ", i), 10)[5:30]
		if got := string(p.Load(addr, 30)); got != want {
			t.Errorf("mapping %d holds %q, want %q", i, got, want)
		}
	}
}
