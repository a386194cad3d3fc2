package swap

import (
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
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
		n, err := eintr.Get(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
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

// numbers lists the entries that are numbers, in buf's memory as it reads.
func (d procDir) numbers(name string, buf []byte) ([]int, error) {
	entries, err := d.entries(name, buf)
	numbers := make([]int, len(entries))
	for i, e := range entries {
		numbers[i] = e.number
	}
	return numbers, err
}

// numbered is an entry of a directory whose name is a number.
type numbered struct {
	number int
	// inode tells whether a directory in /proc is still the same process's:
	// each gets its number when it is first looked up, and a number is never
	// given again (fs/proc/base.c proc_pid_make_inode, fs/inode.c
	// get_next_ino), until 2^32 others have been.
	inode uint64
}

// entries lists the entries that are numbers, in no order.
func (d procDir) entries(name string, buf []byte) ([]numbered, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var found []numbered
	for {
		n, err := eintr.Get(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return found, nil
		}
		list, err := parseEntries(buf[:n])
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if n, err := strconv.Atoi(e.name); err == nil {
				found = append(found, numbered{n, e.inode})
			}
		}
	}
}

// quiet is the flag that keeps statx(2) from asking a FUSE daemon: it answers
// from what the kernel has (fs/fuse/dir.c fuse_update_get_attr).
const quiet = unix.AT_STATX_DONT_SYNC

// place tells the device and the mount of what a magic link points to, and
// nothing else for certain. With an empty mask no file system is asked and
// nobody is refused (fuse_getattr fills in the device even for those that it
// does not allow).
func (d procDir) place(link string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(d.fd, link, quiet, 0, &st)
	return st, err
}

// device is st_dev of what statx told.
func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// attributes is what the kernel believes of what a magic link points to. A
// FUSE mount without allow_other refuses it with EACCES to all but its owner.
func (d procDir) attributes(link string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(d.fd, link, quiet, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	return st, err
}
