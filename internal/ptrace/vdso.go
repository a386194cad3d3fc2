package ptrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pageSize is 4, 16 or 64 KiB on aarch64.
var pageSize = uint64(os.Getpagesize())

const (
	atSysinfo  = 33 // AT_SYSINFO_EHDR
	maxHeaders = 32 // program headers of a vDSO; Linux has 4 to 6
	maxImage   = 1 << 20
)

// region is a range of addresses of a process.
type region struct{ start, end uint64 }

func (r region) has(addr uint64) bool { return addr >= r.start && addr < r.end }

// memoryReader fills b from a process's memory at addr.
type memoryReader func(addr uint64, b []byte) error

// slackBehindText returns the bytes between the end of the vDSO image that
// starts at base and the end of its last executable page. Nothing is in them
// and nothing refers to them; they are executable.
//
// The image is the process's own to change, so no number in it is believed
// before it is bounded.
func slackBehindText(read memoryReader, base uint64) (region, error) {
	var h [64]byte
	if base == 0 || base%pageSize != 0 || base > 1<<62 {
		return region{}, ErrNoVDSO
	}
	if err := read(base, h[:]); err != nil {
		return region{}, fmt.Errorf("%w: %w", ErrNoVDSO, err)
	}
	le := binary.LittleEndian
	if string(h[:6]) != "\x7fELF\x02\x01" { // 64 bits, little endian
		return region{}, fmt.Errorf("%w: no ELF image at %#x", ErrNoVDSO, base)
	}
	phoff, shoff := le.Uint64(h[32:]), le.Uint64(h[40:])
	phentsize, phnum := le.Uint16(h[54:]), le.Uint16(h[56:])
	shentsize, shnum := le.Uint16(h[58:]), le.Uint16(h[60:])
	if phentsize != 56 || phnum == 0 || phnum > maxHeaders || phoff > maxImage {
		return region{}, fmt.Errorf("%w: bad program headers at %#x", ErrNoVDSO, base)
	}
	headers := make([]byte, int(phnum)*56)
	if err := read(base+phoff, headers); err != nil {
		return region{}, fmt.Errorf("%w: %w", ErrNoVDSO, err)
	}
	var textEnd, first uint64
	loads := 0
	for p := headers; len(p) > 0; p = p[56:] {
		if le.Uint32(p) != 1 { // PT_LOAD
			continue
		}
		flags, vaddr, memsz := le.Uint32(p[4:]), le.Uint64(p[16:]), le.Uint64(p[40:])
		if loads++; loads == 1 {
			first = vaddr &^ (pageSize - 1)
		}
		if vaddr < first || vaddr-first > maxImage || memsz > maxImage {
			return region{}, fmt.Errorf("%w: bad segment at %#x", ErrNoVDSO, base)
		}
		if flags&1 != 0 { // PF_X
			textEnd = max(textEnd, vaddr-first+memsz)
		}
	}
	if textEnd == 0 {
		return region{}, fmt.Errorf("%w: no executable segment at %#x", ErrNoVDSO, base)
	}
	pageEnd := (textEnd + pageSize - 1) &^ (pageSize - 1)
	// Section headers and what they describe follow the segment within the
	// same page: the kernel maps the file's image, not its segments.
	if shoff <= maxImage && int(shentsize) <= 64 {
		if end := shoff + uint64(shentsize)*uint64(shnum); shoff >= textEnd && end <= pageEnd {
			textEnd = end
		}
	}
	return region{base + (textEnd+15)&^15, base + pageEnd}, nil
}

// vdsoAddress finds the vDSO in the text of /proc/PID/auxv.
func vdsoAddress(auxv []byte) (uint64, bool) {
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		switch binary.LittleEndian.Uint64(auxv) {
		case 0: // AT_NULL
			return 0, false
		case atSysinfo:
			return binary.LittleEndian.Uint64(auxv[8:]), true
		}
	}
	return 0, false
}

// slack returns where in the process code may be put, and checks that nothing
// is there.
func (p *Process) slack() (region, error) {
	if p.vdso == (region{}) {
		r, err := p.findSlack()
		if err != nil {
			return region{}, fmt.Errorf("process %d: %w", p.PID, err)
		}
		p.vdso = r
	}
	content := make([]byte, p.vdso.end-p.vdso.start)
	if err := p.readMem(p.vdso.start, content); err != nil {
		return region{}, err
	}
	if isResidue(content) {
		return region{}, fmt.Errorf("process %d: %w", p.PID, errResidue)
	}
	for _, b := range content {
		if b != 0 {
			return region{}, fmt.Errorf("process %d: %w: something else is there", p.PID, ErrNoSlack)
		}
	}
	return p.vdso, nil
}

func (p *Process) findSlack() (region, error) {
	auxv, err := readRecord(p.proc("auxv"), make([]byte, 1024)) // Linux has up to 50 pairs of words
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return region{}, ErrGone
	}
	if err != nil {
		return region{}, err
	}
	base, ok := vdsoAddress(auxv)
	if !ok {
		return region{}, ErrNoVDSO
	}
	// All that is asked of an image is at its beginning.
	var head [512]byte
	known := p.readMem(base, head[:]) == nil
	r, err := slackBehindText(func(addr uint64, b []byte) error {
		if at := addr - base; known && at <= uint64(len(head)) && uint64(len(b)) <= uint64(len(head))-at {
			copy(b, head[at:])
			return nil
		}
		return p.readMem(addr, b)
	}, base)
	if err != nil {
		return region{}, err
	}
	if r.end-r.start < blockSize {
		return region{}, fmt.Errorf("%w: %d bytes, %d are needed", ErrNoSlack, r.end-r.start, blockSize)
	}
	r.end = r.start + blockSize
	return r, nil
}
