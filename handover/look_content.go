package handover

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/bytetext"
	"spfs/internal/eintr"
)

// headSize is how much of a file is recorded: CRIU looks whether its first
// bytes are an executable's (criu/files-reg.c, get_build_id).
const headSize = 4096

// identitySize is how far CRIU looks for a build id (the same,
// BUILD_ID_MAP_SIZE).
const identitySize = 1 << 20

// open opens a node that is held once more.
func (s *fileSystem) open(node uint64, flags int) (int, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", s.pins[node])
	return eintr.Get(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) })
}

// recordHead records the beginning of a file, and if that is an executable's
// whatever else its build id is found by.
func (s *fileSystem) recordHead(n *Node) error {
	if len(n.Content) > 0 || n.Attr.Size == 0 || n.Attr.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	// Another open of the file: what a description of the tree is at, its
	// owner alone may move.
	fd, err := s.open(n.ID, unix.O_RDONLY|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = s.open(n.ID, unix.O_RDONLY)
	}
	if err != nil {
		// Whoever may not read it can't look at it either: CRIU will say so.
		return nil
	}
	defer unix.Close(fd)
	head, err := readSpan(fd, 0, headSize)
	if err != nil {
		return fmt.Errorf("reading its first bytes: %w", err)
	}
	n.Content = append(n.Content, head)
	if !bytes.HasPrefix(head.Bytes, []byte(elf.ELFMAG)) || n.Attr.Size <= headSize {
		return nil
	}
	rest, err := readSpan(fd, uint64(len(head.Bytes)), identityEnd(head.Bytes))
	if err != nil {
		return fmt.Errorf("reading what identifies it: %w", err)
	}
	if len(rest.Bytes) > 0 {
		n.Content = append(n.Content, rest)
	}
	return nil
}

// identityEnd says how much of an executable holds its notes, in whole pages,
// as its first bytes tell.
func identityEnd(head []byte) uint64 {
	end := uint64(headSize)
	reach := func(offset, size uint64) {
		if offset < identitySize && size < identitySize && offset+size > end {
			end = min((offset+size+headSize-1)&^(headSize-1), identitySize)
		}
	}
	f := struct{ elf.Header64 }{}
	if len(head) < 64 || head[elf.EI_CLASS] != byte(elf.ELFCLASS64) || head[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
		return end
	}
	if err := binary.Read(bytes.NewReader(head), binary.LittleEndian, &f.Header64); err != nil {
		return end
	}
	reach(f.Phoff, uint64(f.Phnum)*uint64(f.Phentsize))
	for i := range uint64(f.Phnum) {
		at := f.Phoff + i*uint64(f.Phentsize)
		var p elf.Prog64
		if at > uint64(len(head)) || binary.Read(bytes.NewReader(head[at:]), binary.LittleEndian, &p) != nil {
			break
		}
		if elf.ProgType(p.Type) == elf.PT_NOTE {
			reach(p.Off, p.Filesz)
		}
	}
	return end
}

// readSpan reads a file from offset up to end, or to its own end.
func readSpan(fd int, offset, end uint64) (Span, error) {
	b := make([]byte, max(end, offset)-offset)
	got := 0
	for got < len(b) {
		n, err := eintr.Get(func() (int, error) { return unix.Pread(fd, b[got:], int64(offset)+int64(got)) })
		if err != nil {
			return Span{}, err
		}
		if n == 0 {
			break
		}
		got += n
	}
	return Span{offset, b[:got]}, nil
}

// recordEntries records what a directory lists, that somebody reads.
func (s *fileSystem) recordEntries(n *Node, _ *user) error {
	if len(n.Entries) > 0 {
		return nil
	}
	fd, err := s.open(n.ID, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("listing it: %w", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	for {
		got, err := eintr.Get(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return fmt.Errorf("listing it: getdents: %w", err)
		}
		if got == 0 {
			return nil
		}
		entries, err := parseEntries(buf[:got])
		if err != nil {
			return fmt.Errorf("listing it: %w", err)
		}
		if n.Entries = append(n.Entries, entries...); len(n.Entries) > maxEntries {
			return fmt.Errorf("listing it: more than %d entries", maxEntries)
		}
	}
}

// parseEntries reads struct linux_dirent64s.
func parseEntries(b []byte) ([]Entry, error) {
	var entries []Entry
	const header = 19
	for len(b) > 0 {
		if len(b) < header {
			return nil, io.ErrUnexpectedEOF
		}
		length := int(binary.NativeEndian.Uint16(b[16:]))
		if length < header || length > len(b) {
			return nil, errors.New("an entry of impossible length")
		}
		name, _, _ := strings.Cut(string(b[header:length]), "\x00")
		entries = append(entries, Entry{Name: bytetext.Text(name), Ino: binary.NativeEndian.Uint64(b),
			Type: uint32(b[18]), Off: binary.NativeEndian.Uint64(b[8:])})
		b = b[length:]
	}
	return entries, nil
}
