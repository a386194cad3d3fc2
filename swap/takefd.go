package swap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// takeFD copies a descriptor out of another process: pidfd_getfd(2). It is a
// number and no os.File, because that would put a description that other
// processes share into an epoll set, and might clear its O_NONBLOCK.
func takeFD(ref FDRef) (int, error) {
	pidfd, err := openPidfd(ref.Task)
	if err != nil {
		return -1, fmt.Errorf("opening a pidfd of process %d: %w", ref.PID, err)
	}
	defer unix.Close(pidfd)
	return takeThrough(pidfd, ref)
}

// takeThrough is takeFD by a pidfd.
func takeThrough(pidfd int, ref FDRef) (int, error) {
	fd, err := unix.PidfdGetfd(pidfd, ref.FD, 0)
	if err != nil {
		return -1, fmt.Errorf("taking descriptor %d of process %d: %w", ref.FD, ref.PID, err)
	}
	return fd, nil
}

// openPidfd opens a pidfd whose descriptor table is task's.
func openPidfd(task Task) (int, error) {
	if task.TID == task.PID {
		return unix.PidfdOpen(task.PID, 0)
	}
	// A thread may have a table of its own. PIDFD_THREAD (Linux 6.9) is
	// O_EXCL; kernels before know pidfds of leaders only.
	pidfd, err := unix.PidfdOpen(task.TID, unix.O_EXCL)
	if !errors.Is(err, unix.EINVAL) {
		return pidfd, err
	}
	const kcmpFiles = 2 // KCMP_FILES: include/uapi/linux/kcmp.h
	if differ, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(task.PID), uintptr(task.TID), kcmpFiles, 0, 0, 0); e != 0 || differ != 0 {
		return -1, fmt.Errorf("thread %d has a descriptor table of its own: Linux 6.9 or newer is needed", task.TID)
	}
	return unix.PidfdOpen(task.PID, 0)
}
