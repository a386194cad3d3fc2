package fusectl

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Connection is a connection as fusectl shows it.
type Connection struct {
	name string   // its directory, for errors
	dir  *os.File // O_PATH
}

// Open finds the connection of the file system whose st_dev is dev.
func Open(dev uint64) (*Connection, error) {
	root, err := mount("fusectl")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name := strconv.FormatUint(number(dev), 10)
	dir, err := openAt(root, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return &Connection{name, dir}, nil
}

// number is the name of a connection's directory: the kernel's dev_t, in
// decimal (fs/fuse/control.c, fuse_ctl_add_conn).
func number(dev uint64) uint64 {
	const minorBits = 20 // include/linux/kdev_t.h
	return uint64(unix.Major(dev))<<minorBits | uint64(unix.Minor(dev))
}

// Close lets go of the connection, which lives on.
func (c *Connection) Close() error { return c.dir.Close() }

// Waiting is how many requests there are that have no answer yet.
func (c *Connection) Waiting() (int, error) {
	text, err := readAt(c.dir, "waiting")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("requests of connection %s: %w", c.name, err)
	}
	return n, nil
}

// Abort ends the connection for good: every request in it, and every later one,
// fails (fs/fuse/dev.c, fuse_abort_conn: ECONNABORTED for those; then ENOTCONN).
func (c *Connection) Abort() error {
	f, err := openAt(c.dir, "abort", unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("1"); err != nil {
		return fmt.Errorf("ending connection %s: %w", c.name, err)
	}
	return nil
}

// mount makes a mount of a file system of which there is only one, attached
// nowhere.
func mount(kind string) (*os.File, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("fsconfig %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), kind), nil
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	path := dir.Name() + "/" + name
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mostText bounds what is read of a file: they have less than 1 KiB.
const mostText = 64 << 10

func readAt(dir *os.File, name string) (string, error) {
	f, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostText))
	if err != nil {
		return "", err
	}
	return string(text), nil
}
