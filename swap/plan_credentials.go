package swap

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// openAs calls open on a thread of its own with the file system credentials of
// a task (and all capabilities), which then ends.
func openAs(task Task, open func() (*os.File, error)) (*os.File, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", task.PID, task.TID))
	if err != nil {
		return nil, err
	}
	_, cred, err := parseStatus(text)
	if err != nil {
		return nil, err
	}
	var f *os.File
	err = thread.Run(func() (err error) {
		if err := cred.assume(); err != nil {
			return err
		}
		f, err = open()
		return err
	})
	return f, err
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
