package handover

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/devfuse"
	"spfs/internal/eintr"
)

// control is a mount of fusectl of our own, attached nowhere.
type control struct{ dir int }

func openControl() (*control, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen of fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mounting fusectl: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mounting fusectl: fsmount: %w", err)
	}
	return &control{dir}, nil
}

func (c *control) close() { unix.Close(c.dir) }

// waiting is how many requests of a connection are not answered yet
// (fs/fuse/control.c, fuse_conn_waiting_read): all but FORGETs and INTERRUPTs.
func (c *control) waiting(conn uint64) (int, error) {
	name := fmt.Sprintf("%d/waiting", conn)
	fd, err := unix.Openat(c.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("the requests of FUSE connection %d: %w", conn, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	buf := make([]byte, 32)
	n, err := f.Read(buf)
	if err != nil {
		return 0, fmt.Errorf("the requests of FUSE connection %d: %w", conn, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(buf[:n])))
}

// idle says whether nobody waits for an answer, and the daemon has read all
// that there was, FORGETs too (fs/fuse/dev.c, fuse_dev_poll).
func (c *control) idle(d *devfuse.Description) (bool, error) {
	n, err := c.waiting(d.Connection)
	if err != nil || n > 0 {
		return false, err
	}
	raw, err := d.File().SyscallConn()
	if err != nil {
		return false, err
	}
	readable := false
	if cerr := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err = eintr.Get(func() (int, error) { return unix.Poll(fds, 0) }); err == nil {
			readable = fds[0].Revents&unix.POLLIN != 0
		}
	}); cerr != nil {
		return false, cerr
	}
	return !readable, err
}
