package handover

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// callNames are the system calls that wait for a file system, usually.
var callNames = map[int]string{
	unix.SYS_READ: "read", unix.SYS_PREAD64: "pread", unix.SYS_READV: "readv", unix.SYS_PREADV: "preadv", unix.SYS_PREADV2: "preadv2",
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite", unix.SYS_WRITEV: "writev", unix.SYS_PWRITEV: "pwritev", unix.SYS_PWRITEV2: "pwritev2",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_CLOSE: "close", unix.SYS_FSTAT: "fstat",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_GETDENTS64: "getdents", unix.SYS_FLOCK: "flock",
	unix.SYS_FCNTL: "fcntl", unix.SYS_IOCTL: "ioctl", unix.SYS_LSEEK: "lseek", unix.SYS_STATX: "statx", unix.SYS_NEWFSTATAT: "fstatat",
	unix.SYS_OPENAT: "openat", unix.SYS_SENDFILE: "sendfile", unix.SYS_COPY_FILE_RANGE: "copy_file_range",
}

// withFD are those whose first argument is the descriptor that they wait for.
func withFD(nr int) bool {
	return nr != unix.SYS_OPENAT && nr != unix.SYS_STATX && nr != unix.SYS_NEWFSTATAT
}

// doing says what a thread that can't be stopped is doing.
func doing(tid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
	if err != nil {
		return "an unknown call"
	}
	fields := strings.Fields(string(text))
	nr, err := strconv.Atoi(fields[0])
	if err != nil || nr < 0 {
		return "a page fault"
	}
	name := callNames[nr]
	if name == "" {
		name = fmt.Sprintf("system call %d", nr)
	} else if withFD(nr) && len(fields) > 1 {
		if fd, err := strconv.ParseInt(fields[1], 0, 64); err == nil {
			if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd)); err == nil {
				return fmt.Sprintf("%s of descriptor %d (%s)", name, fd, link)
			}
		}
	}
	return name
}
