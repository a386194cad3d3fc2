package test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// TestSwapThatFailsGoesBack makes the last of several processes unable to map
// the new file once all have been stopped: by then the others have mapped
// theirs and changed their directories.
func TestSwapThatFailsGoesBack(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(64))
	rig.Mkdir(t, m.data, "dir")
	var all []*rig.Puppet
	for range 3 {
		p := rig.StartPuppet(t)
		fd := p.Open(m.old+"/f", unix.O_RDWR)
		p.Seek(fd, 10, unix.SEEK_SET)
		p.Chdir(m.old + "/dir")
		p.Store(p.Mmap(fd, 64*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)+7*page, []byte("its own"))
		all = append(all, p)
	}
	counter := rig.StartCounter(t, rig.Mkdir(t, m.old, "counter"), rig.CounterOptions{})
	tight := all[1]
	// Room for what the swap itself needs, not for the file.
	limitMemory(t, tight, vmSize(t, tight)+64<<10)

	for _, p := range all {
		m.unchangedBy(t, p, func() {
			rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).
				Fails(t, 1, itoa(tight.PID), "/f", "cannot allocate memory")
		})
		if got := p.Getcwd(); got != m.old+"/dir" {
			t.Errorf("process %d is in %s after a failed swap, want %s/dir", p.PID, got, m.old)
		}
	}
	counter.Check()

	limitMemory(t, tight, unix.RLIM_INFINITY)
	m.swap(t)
	counter.Check()
}

// TestSwapOffAStubThatFailsShutsItAgain: who waited has its answer by then, and
// who comes after waits again.
func TestSwapOffAStubThatFailsShutsItAgain(t *testing.T) {
	t.Parallel()
	m := toStub(t)
	m.put(t, "f", pages(64))
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	p.Mmap(fd, 64*page, unix.PROT_READ, unix.MAP_PRIVATE)
	limitMemory(t, p, vmSize(t, p)+64<<10)
	rig.SPFS(t, "mode", m.old, "stub").OK(t)
	waiting := p.Start(unix.SYS_PREAD64, fd, make([]byte, 5), 5, 8*page)
	rig.AwaitHeld(t, m.old, 1)

	rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "/f")
	if n, err := waiting.Wait(); n != 5 || err != nil {
		t.Errorf("the read that waited returned %d (%v), want 5 bytes", n, err)
	}
	if mode := rig.StatusOf(t, m.old).Mode; mode != "stub" {
		t.Errorf("after the failed run it is a %s, want stub", mode)
	}
	again := p.Start(unix.SYS_PREAD64, fd, make([]byte, 5), 5, 16*page)
	rig.AwaitHeld(t, m.old, 1)

	limitMemory(t, p, unix.RLIM_INFINITY)
	m.swap(t)
	if n, err := again.Wait(); n != 5 || err != nil {
		t.Errorf("the second read returned %d (%v), want 5 bytes", n, err)
	}
}

func limitMemory(t *testing.T, p *rig.Puppet, bytes uint64) {
	t.Helper()
	limit := unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(p.PID, unix.RLIMIT_AS, &limit, nil); err != nil {
		t.Fatalf("limiting the memory of process %d: %v", p.PID, err)
	}
}

// vmSize is the size of a process's address space in bytes.
func vmSize(t *testing.T, p *rig.Puppet) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^VmSize:\s+(\d+) kB$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no VmSize of process %d", p.PID)
	}
	kb, err := strconv.ParseUint(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
