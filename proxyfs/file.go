package proxyfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Open opens a file. The page cache is not kept from one open to the next: no
// time stamp is fine enough to prove that nobody has written behind the mount.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, nodeFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(n)
	if n.typ != unix.S_IFREG {
		return fuse.EINVAL // special files are the kernel's own (fs/inode.c, init_special_inode)
	}
	var fd int
	err = f.killingPrivileges(in.Mode&fuse.OPEN_KILL_SUIDGID != 0, func() (err error) {
		fd, err = f.withDescriptor(func() (int, error) {
			return reopen(nodeFD, int(in.Flags)&(keptFlags|unix.O_TRUNC))
		})
		return err
	})
	if err != nil {
		return status(err)
	}
	out.Fh = f.add(n, fd, in.Flags).id
	return fuse.OK
}

// Create makes a file and opens it. It always makes a new one: where somebody
// else made one of that name since the kernel asked, the answer is ESTALE, and
// the kernel begins anew (fs/namei.c, do_filp_open), for only it can check
// whether the caller may open what is there.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, base string, out *fuse.CreateOut) fuse.Status {
	dir, dirFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	flags := int(in.Flags)&keptFlags | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	err = f.createOpen(in, dir, dirFD, base, flags, out)
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		err = unix.ESTALE
	}
	return status(err)
}

// Tmpfile makes a file without a name and opens it.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir, dirFD, err := f.use(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	flags := int(in.Flags)&keptFlags | int(in.Flags)&unix.O_EXCL | unix.O_TMPFILE
	return status(f.createOpen(in, nil, dirFD, ".", flags, out))
}

// createOpen opens base in dirFD as the caller, with flags that create a file;
// dir is the directory's node if the file has a name there.
func (f *FS) createOpen(in *fuse.CreateIn, dir *node, dirFD int, base string, flags int, out *fuse.CreateOut) error {
	mode := modeIn(dirFD, in.Mode, in.Umask) & 0o7777
	fd := -1
	err := f.asCaller(&in.InHeader, func() (err error) {
		fd, err = f.withDescriptor(func() (int, error) { return openat(dirFD, base, flags, mode) })
		return err
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	path, err := f.withDescriptor(func() (int, error) { return reopen(fd, unix.O_PATH) })
	if err == nil {
		if err = fstat(path, &st); err != nil {
			unix.Close(path)
		}
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	n := f.adopt(path, &st, dir, base)
	out.Fh = f.add(n, fd, in.Flags).id
	f.fillEntry(&out.EntryOut, n, &st)
	return nil
}

// Release closes a file.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

// Read reads from a file, straight into the answer's buffer.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	_, fd, err := f.file(in.Fh)
	if err != nil {
		return nil, status(err)
	}
	return &readResult{fd, int64(in.Offset), int(in.Size)}, fuse.OK
}

// readResult is a part of a file to be read. Unlike go-fuse's own it goes on
// after a short read, which to the kernel would mean the end of the file.
type readResult struct {
	fd   int
	off  int64
	size int
}

func (r *readResult) Size() int { return r.size }

func (r *readResult) Done() {}

// Bytes reads into buf.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, st := r.Readv([][]byte{buf[:min(len(buf), r.size)]})
	return buf[:n], st
}

// Readv reads into all of dst.
func (r *readResult) Readv(dst [][]byte) (int, fuse.Status) {
	return transfer(dst, r.size, func(part [][]byte, done int) (n int, err error) {
		err = eintr.Retry(func() error {
			n, err = unix.Preadv(r.fd, part, r.off+int64(done))
			return err
		})
		return n, err
	})
}

// transfer calls move with what is left of the first size bytes of bufs, until
// that is nothing, or move moves nothing. An error counts only if nothing was
// moved before it.
func transfer(bufs [][]byte, size int, move func(part [][]byte, done int) (int, error)) (int, fuse.Status) {
	done := 0
	for {
		part := section(bufs, done, size)
		if len(part) == 0 {
			return done, fuse.OK
		}
		n, err := move(part, done)
		if err != nil && done == 0 {
			return 0, status(err)
		}
		if err != nil || n == 0 {
			return done, fuse.OK
		}
		done += n
	}
}

// section returns bytes from to to of bufs.
func section(bufs [][]byte, from, to int) [][]byte {
	if from == 0 && len(bufs) == 1 && len(bufs[0]) > 0 && len(bufs[0]) <= to {
		return bufs
	}
	var part [][]byte
	at := 0
	for _, b := range bufs {
		lo, hi := max(from-at, 0), min(to-at, len(b))
		if lo < hi {
			part = append(part, b[lo:hi])
		}
		at += len(b)
	}
	return part
}

// Write writes to a file.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

// Writev writes to a file. What a program appends is appended below too,
// wherever the end is by then: the kernel's idea of it may be older. But what
// comes from the page cache belongs where it was, whichever open file the
// kernel sends it through (fs/fuse/file.c, fuse_write_file_get): so O_APPEND
// is not for the file below to know.
func (f *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	_, fd, err := f.file(in.Fh)
	if err != nil {
		return 0, status(err)
	}
	appends := in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0
	var written int
	var st fuse.Status
	err = f.killingPrivileges(in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0, func() error {
		written, st = transfer(data, int(in.Size), func(part [][]byte, done int) (n int, err error) {
			err = eintr.Retry(func() error {
				if appends {
					n, err = unix.Pwritev2(fd, part, int64(in.Offset), unix.RWF_APPEND)
				} else {
					n, err = unix.Pwritev(fd, part, int64(in.Offset)+int64(done))
				}
				return err
			})
			return n, err
		})
		return nil
	})
	if err != nil {
		return 0, status(err)
	}
	return uint32(written), st
}

// Flush is called for every close(2). It says whether the file below could
// not keep what was written, as a close there would (the descriptor itself
// stays), and drops the record locks of the process that closes.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	h.node.locks.drop(in.LockOwner)
	fd := int(h.fd.Load())
	if fd < 0 || h.flags&unix.O_ACCMODE == unix.O_RDONLY {
		return fuse.OK // nothing was written
	}
	dup, err := f.withDescriptor(func() (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return status(err)
	}
	return status(unix.Close(dup))
}

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC of include/uapi/linux/fuse.h.
const fsyncDataOnly = 1

// Fsync makes a file durable.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	_, fd, err := f.file(in.Fh)
	if err != nil {
		return status(err)
	}
	return status(eintr.Retry(func() error {
		if in.FsyncFlags&fsyncDataOnly != 0 {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	}))
}

// Fallocate reserves, zeroes or removes space.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	_, fd, err := f.file(in.Fh)
	if err != nil {
		return status(err)
	}
	return status(f.killingPrivileges(in.Uid != 0, func() error {
		return eintr.Retry(func() error { return unix.Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length)) })
	}))
}

// Lseek finds data or holes; other seeks are the kernel's.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	_, fd, err := f.file(in.Fh)
	if err != nil {
		return status(err)
	}
	off, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// maxCopy bounds one COPY_FILE_RANGE, which can't be interrupted.
const maxCopy = 64 << 20

// CopyFileRange copies within the file system below.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	_, from, err := f.file(in.FhIn)
	if err != nil {
		return 0, status(err)
	}
	_, to, err := f.file(in.FhOut)
	if err != nil {
		return 0, status(err)
	}
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	var copied int
	err = f.killingPrivileges(in.Uid != 0, func() error {
		return eintr.Retry(func() (err error) {
			copied, err = unix.CopyFileRange(from, &offIn, to, &offOut, int(min(in.Len, maxCopy)), int(in.Flags))
			return err
		})
	})
	if err != nil {
		return 0, status(err)
	}
	return uint32(copied), fuse.OK
}

// Ioctl knows none: ENOTTY.
func (f *FS) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
