package swap

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// openAs calls open as doAs does.
func openAs(task Task, open func() (*os.File, error)) (f *os.File, err error) {
	err = doAs(task, func() (err error) {
		f, err = open()
		return err
	})
	return f, err
}

// doAs calls do on a thread of its own with the file system credentials of a
// task (and all capabilities), which then ends.
func doAs(task Task, do func() error) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", task.PID, task.TID))
	if err != nil {
		return err
	}
	_, cred, err := parseStatus(text)
	if err != nil {
		return err
	}
	return thread.Run(func() error {
		if err := cred.assume(); err != nil {
			return err
		}
		return do()
	})
}

// assume makes the calling thread the credentials' user in every id: a FUSE
// mount without allow_other looks at all of them.
func (c *credentials) assume() error {
	groups := make([]uint32, len(c.groups))
	for i, g := range c.groups {
		groups[i] = uint32(g)
	}
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	return assume(c.uid, c.gid)
}

// assumeUser makes the calling thread, and it alone, another user's in its real
// and effective id, with the capabilities that it has.
func assumeUser(uid, euid uint32) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_SECUREBITS): %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(euid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("setresuid(%d, %d): %w", uid, euid, errno)
	}
	return nil
}
