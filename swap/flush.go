package swap

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// flusher writes back what processes changed in the old file system's page
// cache: shared mappings write there, and so does write(2) where the daemon
// negotiated a writeback cache. It holds one description per inode that
// someone may have written to, taken while everything still runs, because
// taking one by path would be a request, and closing one is (FUSE_FLUSH).
type flusher struct {
	fds map[uint64]int // by inode number
	// closeToWait: before Linux 6.16 the writeback of a FUSE page ends when
	// it is copied, not when the daemon has it; only fuse_flush waits
	// (fs/fuse/file.c fuse_sync_writes), which is what close(2) calls.
	closeToWait bool
}

func newFlusher() (*flusher, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	return &flusher{fds: map[uint64]int{}, closeToWait: !atLeast(release, 6, 16)}, nil
}

// atLeast tells whether a kernel release such as "6.18.2-amd64" is major.minor
// or later. What can't be read counts as older.
func atLeast(release string, major, minor int) bool {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return false
	}
	digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		parts[1] = parts[1][:digits]
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// add takes a description of every inode of u that may hold unwritten pages
// and isn't held yet. It reports whether there was any.
func (f *flusher) add(u *Usage) (bool, error) {
	grown := false
	for _, d := range u.Descriptions {
		writer := d.Type == unix.S_IFREG && d.Flags&unix.O_PATH == 0 && d.Flags&unix.O_ACCMODE != unix.O_RDONLY
		if !writer || f.has(d.Ino) || len(d.Refs) == 0 {
			continue
		}
		fd, err := takeFD(d.Refs[0])
		if closedMeanwhile(err) {
			continue
		}
		if err != nil {
			return grown, err
		}
		f.fds[d.Ino] = fd
		grown = true
	}
	for _, s := range u.Spaces {
		for _, m := range s.Mappings {
			if !m.Shared || !m.MayWrite || f.has(m.Ino) {
				continue
			}
			// The file was closed after mmap: only the mapping leads to it.
			name := fmt.Sprintf("/proc/%d/map_files/%x-%x", s.Tasks[0].PID, m.Start, m.End)
			fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if closedMeanwhile(err) {
				continue
			}
			if err != nil {
				return grown, fmt.Errorf("opening the mapped file %s to flush it: %w", m.Path, err)
			}
			f.fds[m.Ino] = fd
			grown = true
		}
	}
	return grown, nil
}

// closedMeanwhile tells that a process that still runs closed or unmapped a file, or
// exited, since it was found with it. Who looks again sees what came of it.
func closedMeanwhile(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOENT)
}

func (f *flusher) has(ino uint64) bool { _, ok := f.fds[ino]; return ok }

// flush writes everything back and waits until the daemon has it.
func (f *flusher) flush() error {
	for ino, fd := range f.fds {
		err := unix.SyncFileRange(fd, 0, 0,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		if err != nil {
			return fmt.Errorf("flushing inode %d of the old mount: %w", ino, err)
		}
	}
	if f.closeToWait {
		return f.close()
	}
	return nil
}

// close gives the descriptions back. An error is the daemon's answer to
// FUSE_FLUSH: what it could not write.
func (f *flusher) close() error {
	var errs []error
	for ino, fd := range f.fds {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("closing inode %d of the old mount: %w", ino, err))
		}
	}
	clear(f.fds)
	return errors.Join(errs...)
}
