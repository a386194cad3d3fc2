package ptrace

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// image reads from a copy of memory that begins at base.
func image(base uint64, mem []byte) memoryReader {
	return func(addr uint64, b []byte) error {
		if addr < base || addr-base > uint64(len(mem)) || uint64(len(b)) > uint64(len(mem))-(addr-base) {
			return unix.EIO
		}
		copy(b, mem[addr-base:])
		return nil
	}
}

// elf makes a vDSO: one executable segment of the given size, section headers
// behind it.
func elf(vaddr, memsz, shoff uint64, shnum uint16) []byte {
	mem := make([]byte, 2*pageSize)
	copy(mem, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint64(mem[32:], 64)
	le.PutUint64(mem[40:], shoff)
	le.PutUint16(mem[54:], 56)
	le.PutUint16(mem[56:], 1)
	le.PutUint16(mem[58:], 64)
	le.PutUint16(mem[60:], shnum)
	le.PutUint32(mem[64:], 1)
	le.PutUint32(mem[68:], 5)
	le.PutUint64(mem[80:], vaddr)
	le.PutUint64(mem[104:], memsz)
	return mem
}

func TestSlackBehindText(t *testing.T) {
	const base = 0x7fff00000000
	with := func(off int, v uint64, mem []byte) []byte {
		binary.LittleEndian.PutUint64(mem[off:], v)
		return mem
	}
	for _, c := range []struct {
		name       string
		mem        []byte
		start, end uint64
		err        error
	}{
		{"text only", elf(0, 0x522, 0, 0), 0x530, 0x1000, nil},
		{"section headers behind", elf(0, 0x522, 0x600, 2), 0x680, 0x1000, nil},
		{"section headers on another page", elf(0, 0x522, 0x1200, 2), 0x530, 0x1000, nil},
		{"linked to an address", elf(0xffffffffff700000, 0x100, 0, 0), 0x100, 0x1000, nil},
		{"ends with a page", elf(0, 0x1000, 0, 0), 0x1000, 0x1000, nil},
		{"no ELF", make([]byte, 4096), 0, 0, ErrNoVDSO},
		{"nothing there", nil, 0, 0, ErrNoVDSO},
		{"segment too big", elf(0, 1<<40, 0, 0), 0, 0, ErrNoVDSO},
		{"headers far away", with(32, 1<<40, elf(0, 0x522, 0, 0)), 0, 0, ErrNoVDSO},
		{"headers cut off", with(32, 2*pageSize-8, elf(0, 0x522, 0, 0)), 0, 0, ErrNoVDSO},
		{"not executable", with(64, 1|4<<32, elf(0, 0x522, 0, 0)), 0, 0, ErrNoVDSO},
	} {
		r, err := slackBehindText(image(base, c.mem), base)
		if !errors.Is(err, c.err) || err == nil && (r.start-base != c.start || r.end-base != c.end) {
			t.Errorf("%s: %#x-%#x, %v; want %#x-%#x, %v", c.name, r.start-base, r.end-base, err, c.start, c.end, c.err)
		}
	}
}

func FuzzSlackBehindText(f *testing.F) {
	const base = 0x7fff00000000
	f.Add(elf(0, 0x522, 0x600, 2))
	f.Add(elf(0xffffffffff700000, 0x100, 0, 0))
	f.Fuzz(func(t *testing.T, mem []byte) {
		r, err := slackBehindText(image(base, mem), base)
		if err != nil {
			return
		}
		if r.start > r.end || r.start < base || r.end > base+2*maxImage+pageSize || r.end%pageSize != 0 || r.start%16 != 0 {
			t.Errorf("%#x-%#x", r.start, r.end)
		}
	})
}

// The vDSO of this machine has the room that the code needs.
func TestOwnVDSOHasRoom(t *testing.T) {
	base, ok := vdsoAddress(must(os.ReadFile("/proc/self/auxv"))(t))
	if !ok {
		t.Fatal("no vDSO")
	}
	mem := must(os.Open("/proc/self/mem"))(t)
	defer mem.Close()
	r := must(slackBehindText(func(addr uint64, b []byte) error {
		_, err := mem.ReadAt(b, int64(addr))
		return err
	}, base))(t)
	t.Logf("%d bytes, %d are needed", r.end-r.start, blockSize)
	if r.end-r.start < blockSize {
		t.Errorf("%d bytes, %d are needed", r.end-r.start, blockSize)
	}
	content := make([]byte, r.end-r.start)
	must(mem.ReadAt(content, int64(r.start)))(t)
	for i, b := range content {
		if b != 0 {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
}

func TestVDSOAddress(t *testing.T) {
	aux := func(words ...uint64) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	for _, c := range []struct {
		auxv []byte
		addr uint64
		ok   bool
	}{
		{aux(6, 4096, atSysinfo, 0x1000, 0, 0), 0x1000, true},
		{aux(6, 4096, 0, 0, atSysinfo, 0x1000), 0, false},
		{aux(atSysinfo), 0, false},
		{nil, 0, false},
	} {
		if addr, ok := vdsoAddress(c.auxv); addr != c.addr || ok != c.ok {
			t.Errorf("%x: %#x, %v; want %#x, %v", c.auxv, addr, ok, c.addr, c.ok)
		}
	}
}
