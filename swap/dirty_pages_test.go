package swap

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPrivatePagesFindsExactlyTheCopiedOnes maps a file privately here, reads
// all of it, writes to some pages, and asks the kernel's own pagemap.
func TestPrivatePagesFindsExactlyTheCopiedOnes(t *testing.T) {
	page := os.Getpagesize()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, bytes.Repeat([]byte{7}, 64*page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 64*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	sum := 0
	for i := 0; i < len(m); i += page {
		sum += int(m[i])
	}
	if sum != 7*64 {
		t.Fatalf("the mapping reads %d, want %d", sum, 7*64)
	}
	for _, p := range []int{0, 3, 4, 5, 63} {
		m[p*page] = 1
	}

	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	base := addressOf(m)
	runs, err := privatePages(pagemap, base, base+uint64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) uint64 { return base + uint64(i*page) }
	want := []pageRun{{at(0), at(1)}, {at(3), at(6)}, {at(63), at(64)}}
	if !reflect.DeepEqual(runs, want) {
		t.Errorf("private pages %x, want %x", runs, want)
	}
}

func TestPrivatePagesRefusesAShortPagemap(t *testing.T) {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], pagemapPresent)
	page := uint64(os.Getpagesize())
	if runs, err := privatePages(bytes.NewReader(one[:]), 0, 2*page); err == nil {
		t.Errorf("a pagemap that ends early gave %v and no error", runs)
	}
}

// fakeMemory is a process of one small address range.
type fakeMemory []byte

func (m fakeMemory) ReadMem(addr uint64, b []byte) error  { copy(b, m[addr:]); return nil }
func (m fakeMemory) WriteMem(addr uint64, b []byte) error { copy(m[addr:], b); return nil }

func TestCopyRunsKeepsOffsets(t *testing.T) {
	m := make(fakeMemory, 1<<20)
	for i := range 1 << 19 {
		m[i] = byte(i * 7)
	}
	runs := []pageRun{{4096, 8192}, {12288, 12288 + 300<<10}}
	if err := copyRuns(m, runs, 4096, 1<<19); err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		n := r.end - r.start
		to := 1<<19 + r.start - 4096
		if !bytes.Equal(m[to:to+n], m[r.start:r.end]) {
			t.Errorf("run %x did not arrive at %#x", r, to)
		}
	}
	if m[1<<19+5000] != 0 {
		t.Error("bytes between the runs were written")
	}
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
