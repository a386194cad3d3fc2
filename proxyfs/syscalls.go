package proxyfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

func openat(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = eintr.Retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

func fstat(fd int, st *unix.Stat_t) error {
	return eintr.Retry(func() error { return unix.Fstat(fd, st) })
}

func fstatat(dir int, name string, st *unix.Stat_t) error {
	return eintr.Retry(func() error { return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// procPath is a path to the very file that fd is open on, for calls that take
// no O_PATH descriptor. Even a symbolic link is not followed further: the
// path ends in it (fs/namei.c, nd_jump_link).
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens again the file that fd (O_PATH will do) is open on.
func reopen(fd, flags int) (int, error) {
	return openat(unix.AT_FDCWD, procPath(fd), flags, 0)
}

// checkProc makes sure that procPath can be relied on.
func checkProc() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/self/fd", &fs); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return errors.New("/proc is not a proc file system")
	}
	return nil
}

// raiseDescriptorLimit raises RLIMIT_NOFILE as far as it may go and returns
// how many descriptors nodes may hold: half, the rest is for open files.
func raiseDescriptorLimit() (int, error) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	if lim.Cur < lim.Max {
		lim.Cur = lim.Max
		// syscall's, not unix's: it also keeps the Go runtime from
		// setting the limit back for the children of this process.
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			return 0, os.NewSyscallError("setrlimit", err)
		}
	}
	return int(min(lim.Cur, 1<<20)) / 2, nil
}

func closeAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		if fd >= 0 {
			if err := unix.Close(fd); err != nil {
				errs = append(errs, os.NewSyscallError("close", err))
			}
		}
	}
	return errors.Join(errs...)
}

// outOfDescriptors tells whether closing some descriptors would help.
func outOfDescriptors(err error) bool { return err == unix.EMFILE || err == unix.ENFILE }

// status is the answer for err, which must come from the kernel below.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}
