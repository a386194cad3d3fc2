package fusedev

import (
	"encoding/binary"
	"testing"
	"unsafe"
)

// message makes a request out of its opcode and what follows the header.
func message(op Opcode, arg string) Request {
	r := make([]byte, headerSize, headerSize+len(arg))
	binary.NativeEndian.PutUint32(r[4:], uint32(op))
	return append(r, arg...)
}

func TestName(t *testing.T) {
	for _, c := range []struct {
		op   Opcode
		arg  string
		want string
	}{
		{OpLookup, "file\x00", "file"},
		{OpLookup, "cut short", "cut short"},
		{9, "\x01\x02\x03\x04\x05\x06\x07\x08dir\x00", "dir"},         // MKDIR
		{12, "\x01\x02\x03\x04\x05\x06\x07\x08old\x00new\x00", "old"}, // RENAME
		{6, "link\x00target\x00", "link"},                             // SYMLINK
		{35, "0123", ""},                                              // CREATE, too short
		{OpGetattr, "0123456789abcdef", ""},
	} {
		if got := message(c.op, c.arg).Name(); got != c.want {
			t.Errorf("%s %q: name %q, want %q", c.op, c.arg, got, c.want)
		}
	}
}

func TestRangeWriteBackAndUnlock(t *testing.T) {
	arg := func(words ...uint64) string {
		var b []byte
		for _, w := range words {
			b = binary.NativeEndian.AppendUint64(b, w)
		}
		return string(b)
	}
	w := message(OpWrite, arg(1, 4096, 1<<32|512)) // fh, offset, size and flags
	if off, size := w.Range(); off != 4096 || size != 512 || !w.WriteBack() {
		t.Errorf("offset %d, size %d, write-back %v", off, size, w.WriteBack())
	}
	if message(OpWrite, arg(1, 4096, 512)).WriteBack() || message(OpRead, arg(1, 4096, 1<<32|512)).WriteBack() {
		t.Error("what is not write-back is taken for it")
	}
	for typ, want := range map[uint64]bool{0: false, 1: false, 2: true} {
		lock := arg(1, 2, 0, 9, typ)
		for _, op := range []Opcode{OpSetlk, OpSetlkw} {
			if got := message(op, lock).Unlock(); got != want {
				t.Errorf("%s of type %d: unlock %v", op, typ, got)
			}
		}
	}
	if message(OpRead, arg(1, 2, 0, 9, 2)).Unlock() {
		t.Error("READ is taken for an unlock")
	}
}

func TestDataLiesOnAPage(t *testing.T) {
	for range 10 {
		b := GetBuffers()
		defer b.Put()
		req := b.Copy(message(OpWrite, "x"))
		for what, p := range map[string]*byte{
			"of a WRITE": &b.in[writeHeader],
			"of a READ":  &b.out[readHeader],
		} {
			if uintptr(unsafe.Pointer(p))%PageSize != 0 {
				t.Errorf("data %s is at %p", what, p)
			}
		}
		if req.Opcode() != OpWrite || len(b.Out()) < MaxWrite+readHeader || len(b.in) < MaxWrite+writeHeader {
			t.Errorf("room for %d and %d bytes", len(b.in), len(b.Out()))
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(message(OpLookup, "file\x00")))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := Request(b)
		r.Name()
		r.Range()
		r.WriteBack()
		r.Unlock()
		r.Interrupted()
		_ = r.Opcode().String()
		_ = r.TID()
		_ = r.valid()
	})
}
