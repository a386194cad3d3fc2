package criuhook

import (
	"bytes"
	"encoding/binary"
)

// parseDirents parses what getdents64(2) filled a buffer with (struct
// linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name).
func parseDirents(b []byte) []Dirent {
	const nameAt = 19
	var out []Dirent
	for len(b) > nameAt {
		length := int(binary.NativeEndian.Uint16(b[16:]))
		if length <= nameAt || length > len(b) {
			return out
		}
		name, _, _ := bytes.Cut(b[nameAt:length], []byte{0})
		out = append(out, Dirent{Name: Text(name), Cookie: int64(binary.NativeEndian.Uint64(b[8:]))})
		b = b[length:]
	}
	return out
}
