package swap

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// procDir is a directory below /proc held open: while it is, it is of the same
// task, whatever happens to the number.
type procDir struct{ fd int }

func openProcDir(path string) (procDir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return procDir{fd}, err
}

func (d procDir) open(name string) (procDir, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return procDir{fd}, err
}

func (d procDir) close() { unix.Close(d.fd) }

// read returns a file's text, in buf as far as it fits.
func (d procDir) read(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := buf[:0]
	for {
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return text, nil
		}
		text = text[:len(text)+n]
	}
}

// link returns where a link points to. The kernel gives up beyond a page
// (fs/proc/base.c do_proc_readlink: ENAMETOOLONG).
func (d procDir) link(name string) (string, error) {
	var buf [unix.PathMax + 1]byte
	n, err := unix.Readlinkat(d.fd, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// record returns the text of a file that is one record (single_open in the
// kernel: stat, status, fdinfo): such a file is read whole by one read(2) that
// leaves room (fs/seq_file.c seq_read_iter).
func (d procDir) record(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	n, err := unix.Read(fd, buf)
	unix.Close(fd)
	if err != nil {
		return nil, err
	}
	if n == len(buf) {
		return d.read(name, buf)
	}
	return buf[:n], nil
}

// numbers lists the entries that are numbers.
func (d procDir) numbers(name string) ([]int, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	numbers := make([]int, 0, len(names))
	for _, s := range names {
		if n, err := strconv.Atoi(s); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// quiet is the flag that keeps statx(2) from asking a FUSE daemon: it answers
// from what the kernel has (fs/fuse/dir.c fuse_update_get_attr).
const quiet = unix.AT_STATX_DONT_SYNC

// place tells the device and the mount of what a magic link points to, and
// nothing else. With an empty mask no file system is asked and nobody is
// refused (fuse_getattr fills in the device even for those that it does not
// allow).
func (d procDir) place(link string) (dev uint64, mount int, err error) {
	var st unix.Statx_t
	if err := unix.Statx(d.fd, link, quiet, 0, &st); err != nil {
		return 0, 0, err
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), int(st.Mnt_id), nil
}

// attributes is what the kernel believes of what a magic link points to. A
// FUSE mount without allow_other refuses it with EACCES to all but its owner.
func (d procDir) attributes(link string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(d.fd, link, quiet, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	return st, err
}
