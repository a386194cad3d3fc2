package proxyfs

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// dirent is an entry of a directory. cookie is the position after it.
type dirent struct {
	name   string
	ino    uint64
	cookie uint64
	typ    uint8 // DT_…
}

// The fields of struct linux_dirent64 (include/linux/dirent.h).
const (
	direntOff    = 8
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

var errDirent = errors.New("malformed directory entry")

// parseDirents appends to list what getdents64(2) wrote to buf.
func parseDirents(list []dirent, buf []byte) ([]dirent, error) {
	all := string(buf) // one string for all the names
	for at := 0; at < len(buf); {
		rest := buf[at:]
		if len(rest) < direntName {
			return list, errDirent
		}
		size := int(binary.NativeEndian.Uint16(rest[direntReclen:]))
		if size <= direntName || size > len(rest) {
			return list, errDirent
		}
		end := bytes.IndexByte(rest[direntName:size], 0)
		if end <= 0 {
			return list, errDirent
		}
		list = append(list, dirent{
			name:   all[at+direntName : at+direntName+end],
			ino:    binary.NativeEndian.Uint64(rest),
			cookie: binary.NativeEndian.Uint64(rest[direntOff:]),
			typ:    rest[direntType],
		})
		at += size
	}
	return list, nil
}
