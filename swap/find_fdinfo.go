package swap

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"spfs/internal/mounts"
)

// fdInfo is what /proc/PID/fdinfo/N tells: of any descriptor, and what some
// kinds add (the f_op->show_fdinfo of each).
type fdInfo struct {
	pos   int64
	flags int    // O_…, O_CLOEXEC among them (fs/proc/fd.c seq_show)
	mount int    // mnt_id
	ino   uint64 // since Linux 5.14, else 0

	locks    []string // each a line as in /proc/locks, without the number
	watches  []watch
	uring    bool     // an io_uring
	files    []string // registered with it
	unixSock bool     // a Unix socket
	scmFDs   int      // descriptors in flight in its queue
	fuse     int      // connection number of an open /dev/fuse, or 0
}

// watch is a file, mount or file system that an epoll, inotify or fanotify
// descriptor listens to.
type watch struct {
	kind   string // "epoll", "inotify", "fanotify"
	sdev   uint64 // the kernel's dev_t (MAJOR<<20 | MINOR), if hasSdev
	mount  int    // mnt_id, of a fanotify mount mark; else 0
	hasDev bool

	// Of an epoll: by which number what is registered, for which events, with
	// which data.
	fd     int
	events uint32
	data   uint64

	// Of an inotify: the watch's number, for which events, of which file.
	wd     int
	mask   uint32
	handle mounts.Handle
}

var errFDInfo = errors.New("not understood")

// parseFDInfo reads the text of a fdinfo file. Lines that it does not know are
// skipped: they belong to kinds of files that can't be on a FUSE mount and
// hold nothing of one.
func parseFDInfo(text []byte) (fdInfo, error) {
	var info fdInfo
	var have int
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			// "inotify wd:…" and the like have a colon too; what has none is
			// a continuation that nobody needs.
			continue
		}
		var err error
		switch string(key) {
		case "pos":
			info.pos, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			have |= 1
		case "flags":
			var flags uint64
			flags, err = strconv.ParseUint(string(bytes.TrimSpace(value)), 8, 32)
			info.flags = int(flags)
			have |= 2
		case "mnt_id":
			info.mount, err = strconv.Atoi(string(bytes.TrimSpace(value)))
			have |= 4
		case "ino":
			info.ino, err = strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
		case "lock":
			// "lock:\t1: FLOCK  ADVISORY  WRITE 123 00:2d:5 0 EOF"
			_, what, _ := bytes.Cut(value, []byte(":"))
			info.locks = append(info.locks, string(bytes.Join(bytes.Fields(what), []byte(" "))))
		case "scm_fds": // net/unix/af_unix.c unix_show_fdinfo: of every socket
			info.unixSock = true
			info.scmFDs, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		case "fuse_connection":
			info.fuse, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		case "UserFiles":
			info.uring = true
			var n int
			if n, err = strconv.Atoi(string(bytes.TrimSpace(value))); err == nil {
				info.files, text = parseUringFiles(text, n)
			}
		case "SqThread", "SqMask":
			info.uring = true
		case "tfd":
			var w watch
			if w, err = parseRegistration(value); err == nil {
				info.watches = append(info.watches, w)
			}
		default:
			for _, kind := range []string{"inotify", "fanotify"} {
				if bytes.HasPrefix(line, []byte(kind+" ")) && !bytes.HasPrefix(line, []byte("fanotify flags:")) {
					info.watches = append(info.watches, parseWatch(kind, line))
				}
			}
		}
		if err != nil {
			return info, fmt.Errorf("fdinfo line %q: %w", line, errFDInfo)
		}
	}
	if have != 7 {
		return info, fmt.Errorf("fdinfo without pos, flags or mnt_id: %w", errFDInfo)
	}
	return info, nil
}

// parseWatch finds "sdev:HEX" and "mnt_id:HEX" (fs/eventpoll.c
// ep_show_fdinfo, fs/notify/fdinfo.c). A watch whose device can't be read has
// hasDev false: it may be anything.
func parseWatch(kind string, text []byte) watch {
	w := watch{kind: kind}
	for _, field := range bytes.Fields(text) {
		key, value, ok := bytes.Cut(field, []byte(":"))
		if !ok {
			continue
		}
		switch string(key) {
		case "sdev":
			if sdev, err := strconv.ParseUint(string(value), 16, 64); err == nil {
				w.sdev, w.hasDev = sdev, true
			}
		case "mnt_id":
			if id, err := strconv.ParseInt(string(value), 16, 64); err == nil {
				w.mount = int(id)
			}
		case "wd":
			if wd, err := strconv.ParseInt(string(value), 16, 32); err == nil && wd > 0 {
				w.wd = int(wd)
			}
		case "mask":
			if mask, err := strconv.ParseUint(string(value), 16, 32); err == nil {
				w.mask = uint32(mask)
			}
		case "fhandle-type":
			if kind, err := strconv.ParseInt(string(value), 16, 32); err == nil {
				w.handle.Type = int32(kind)
			}
		case "f_handle":
			const most = 128 // MAX_HANDLE_SZ, include/linux/exportfs.h
			if b, err := hex.DecodeString(string(value)); err == nil && len(b) <= most {
				w.handle.Bytes = string(b)
			}
		}
	}
	return w
}

// parseRegistration reads what follows "tfd:" in
// "tfd:        5 events:       19 data:                5  pos:0 ino:7 sdev:2d"
// (fs/eventpoll.c ep_show_fdinfo).
func parseRegistration(text []byte) (watch, error) {
	w := parseWatch("epoll", text)
	fields := bytes.Fields(text)
	if len(fields) < 5 || string(fields[1]) != "events:" || string(fields[3]) != "data:" {
		return w, errFDInfo
	}
	fd, err := strconv.ParseInt(string(fields[0]), 10, 32)
	events, err2 := strconv.ParseUint(string(fields[2]), 16, 32)
	data, err3 := strconv.ParseUint(string(fields[4]), 16, 64)
	w.fd, w.events, w.data = int(fd), uint32(events), data
	return w, errors.Join(err, err2, err3)
}

// parseUringFiles takes up to n lines "    0: /path" off text (io_uring/fdinfo.c).
// Empty slots have no line in newer kernels and "<none>" in older ones.
func parseUringFiles(text []byte, n int) (files []string, rest []byte) {
	for ; n > 0 && len(text) > 0 && (text[0] == ' ' || text[0] >= '0' && text[0] <= '9'); n-- {
		var line []byte
		line, text = cutLine(text)
		_, path, ok := bytes.Cut(line, []byte(": "))
		if ok && string(path) != "<none>" {
			files = append(files, unescapeOctal(string(path)))
		}
	}
	return files, text
}

func cutLine(text []byte) (line, rest []byte) {
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		return text[:i], text[i+1:]
	}
	return text, nil
}

// unescapeOctal undoes the kernel's \ooo (fs/seq_file.c mangle_path). What is
// no such escape stays as it is.
func unescapeOctal(s string) string {
	if !bytes.ContainsRune([]byte(s), '\\') {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(c))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
