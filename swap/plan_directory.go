package swap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// placeInDirectory finds the position in the new directory that the old
// position stands for. Positions are the file system's own business (a count,
// a hash, a pointer), so what decides is which names have been read.
func (o *opener) placeInDirectory(j *opening) {
	pos, err := int64(0), error(nil)
	switch {
	case j.pos == 0:
	case o.plan.asks():
		pos, err = o.placeByNames(j)
	case o.plan.From.Mount.FSType == o.plan.To.Mount.FSType:
		// The same kind of file system counts in the same way: if the new
		// directory has that position at all, it is the same one.
		var fresh *os.File
		if fresh, err = openToList(j); err == nil {
			pos, err = j.pos, hasPosition(fresh, j.pos)
			fresh.Close()
		}
	default:
		err = errors.New("the old mount is not asked what has been read, and the new one is of another kind")
	}
	if err != nil {
		j.refuse(fmt.Sprintf("it is being read, and its position can't be told on --to: %v", err), "let it finish the directory")
		j.obstacles[len(j.obstacles)-1].unasked = !o.plan.AskOld && !o.plan.Silent()
		return
	}
	if err := prime(j); err != nil {
		j.refuse(fmt.Sprintf("it is being read, and %v", err), "look at the daemon of --to")
		return
	}
	j.got.pos, j.got.newPos, j.got.posSet = j.pos, pos, true
}

// prime has the daemon begin to list j's replacement. One that gives its entries
// no positions of its own reads the directory as a whole when it is asked for the
// first time, and is only then asked for what follows a position (libfuse's
// lib/fuse.c, readdir_fill; sshfs aborts if it is asked for that at first). One
// reading of the beginning leaves every daemon where the next may be anywhere.
func prime(j *opening) error {
	if j.pos == 0 {
		return nil
	}
	fd := int(j.got.file.Fd())
	j.got.placed = placed{} // its position changes
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return fmt.Errorf("its beginning can't be sought on --to: %w", err)
	}
	var one [512]byte // an entry, whatever its name
	if _, err := eintr.Get(func() (int, error) { return unix.Getdents(fd, one[:]) }); err != nil {
		return fmt.Errorf("its beginning can't be read on --to: %w", err)
	}
	return nil
}

// openToList opens j's replacement once more, to be read. Of the replacement
// itself only the beginning is read (prime): a daemon may not find back in a
// directory that has been read in part and is then read elsewhere (go-fuse takes
// that for a reading that was interrupted, and leaves entries out).
func openToList(j *opening) (*os.File, error) {
	return openHereOrAs(j.task, func() (*os.File, error) { return reopen(j.got.file, unix.O_RDONLY|unix.O_DIRECTORY) })
}

// openHereOrAs calls open, and as openAs does if the file system does not admit
// us.
func openHereOrAs(task Task, open func() (*os.File, error)) (*os.File, error) {
	f, err := open()
	if errors.Is(err, unix.EACCES) {
		f, err = openAs(task, open)
	}
	return f, err
}

// placeByNames asks the old directory for the names before j's position.
func (o *opener) placeByNames(j *opening) (int64, error) {
	link := fmt.Sprintf("/proc/%d/task/%d/fd/%d", j.ref.PID, j.ref.TID, j.ref.FD)
	old, err := openHereOrAs(j.task, func() (*os.File, error) {
		fd, err := eintr.Get(func() (int, error) { return unix.Open(link, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
		if err != nil {
			return nil, fmt.Errorf("open it once more: %w", err)
		}
		return os.NewFile(uintptr(fd), link), nil
	})
	if err != nil {
		return 0, err
	}
	defer old.Close()
	read := map[string]bool{}
	at := int64(0)
	err = eachEntry(old, func(e dirEntry) bool {
		read[e.name] = true
		at = e.next
		return at != j.pos
	})
	if err != nil {
		return 0, err
	}
	if at != j.pos {
		return 0, fmt.Errorf("the old directory has no position %d", j.pos)
	}
	left := len(read)
	pos, strange := int64(0), ""
	fresh, err := openToList(j)
	if err != nil {
		return 0, err
	}
	defer fresh.Close()
	err = eachEntry(fresh, func(e dirEntry) bool {
		if !read[e.name] {
			strange = e.name
			return false
		}
		left--
		pos = e.next
		return left > 0
	})
	switch {
	case err != nil:
		return 0, err
	case strange != "":
		return 0, fmt.Errorf("%s comes earlier there", printable(strange))
	case left > 0:
		return 0, fmt.Errorf("%d names that have been read are missing there", left)
	}
	return pos, nil
}

// hasPosition says whether pos comes after some entry of dir.
func hasPosition(dir *os.File, pos int64) error {
	found := false
	err := eachEntry(dir, func(e dirEntry) bool {
		found = e.next == pos
		return !found
	})
	if err == nil && !found {
		err = fmt.Errorf("the new directory has no position %d", pos)
	}
	return err
}

// dirEntry is an entry of a directory and the position after it.
type dirEntry struct {
	name  string
	inode uint64
	next  int64
}

// maxEntries bounds what is read of a directory: a FUSE daemon may make one
// without end.
const maxEntries = 4 << 20

var errEndless = fmt.Errorf("more than %d entries", maxEntries)

// eachEntry calls fn for the entries of dir from its start until fn returns
// false, and leaves dir at its start.
func eachEntry(dir *os.File, fn func(dirEntry) bool) error {
	fd := int(dir.Fd())
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return fmt.Errorf("seek: %w", err)
	}
	buf := make([]byte, 64<<10)
	for n := 0; ; {
		size, err := eintr.Get(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return fmt.Errorf("getdents: %w", err)
		}
		entries, err := parseEntries(buf[:size])
		if err != nil {
			return err
		}
		for _, e := range entries {
			if n++; n > maxEntries {
				return errEndless
			}
			if !fn(e) {
				size = 0
				break
			}
		}
		if size == 0 {
			_, err := unix.Seek(fd, 0, unix.SEEK_SET)
			return err
		}
	}
}

var errEntries = errors.New("getdents: entries not understood")

// parseEntries reads what getdents64 filled in (include/linux/dirent.h struct
// linux_dirent64).
func parseEntries(data []byte) ([]dirEntry, error) {
	const header = 8 + 8 + 2 + 1
	var entries []dirEntry
	for len(data) > 0 {
		if len(data) < header {
			return nil, errEntries
		}
		length := int(binary.NativeEndian.Uint16(data[16:]))
		if length < header || length > len(data) {
			return nil, errEntries
		}
		name, _, ended := bytes.Cut(data[header:length], []byte{0})
		if !ended {
			return nil, errEntries
		}
		entries = append(entries, dirEntry{
			name:  string(name),
			inode: binary.NativeEndian.Uint64(data),
			next:  int64(binary.NativeEndian.Uint64(data[8:])),
		})
		data = data[length:]
	}
	return entries, nil
}
