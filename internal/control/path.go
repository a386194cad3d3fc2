package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// defaultDir holds the sockets.
const defaultDir = "/run/spfs"

// directory is defaultDir, but for tests.
var directory = defaultDir

func socketName(dev uint64) string {
	return fmt.Sprintf("%d:%d.sock", unix.Major(dev), unix.Minor(dev))
}

func socketPath(dev uint64) string { return filepath.Join(directory, socketName(dev)) }

// parseSocketName is the inverse of socketName.
func parseSocketName(name string) (dev uint64, ok bool) {
	var major, minor uint32
	if _, err := fmt.Sscanf(name, "%d:%d.sock", &major, &minor); err != nil {
		return 0, false
	}
	dev = unix.Mkdev(major, minor)
	return dev, socketName(dev) == name
}

// List returns the devices of all mounts that have a socket, by number. Their
// daemons may be gone: Dial tells.
func List() ([]uint64, error) {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the running mounts: %w", err)
	}
	var devs []uint64
	for _, e := range entries {
		if dev, ok := parseSocketName(e.Name()); ok {
			devs = append(devs, dev)
		}
	}
	slices.Sort(devs)
	return devs, nil
}

// RemoveStale removes the socket that a daemon left when it was killed. It
// leaves that of a daemon that runs.
func RemoveStale(dev uint64) error {
	dir, err := openDirectory()
	if err != nil {
		return err
	}
	defer dir.Close()
	if c, err := Dial(dev); !errors.Is(err, ErrNotServed) {
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := os.Remove(socketPath(dev)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a stale control socket: %w", err)
	}
	return nil
}

// openDirectory makes the directory if there is none, and returns it locked
// against other daemons that begin or end. Only root can have put it into
// /run; that no one else can write it is seen to here.
func openDirectory() (*os.File, error) {
	if err := os.Mkdir(directory, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("making the directory of control sockets: %w", err)
	}
	fd, err := unix.Open(directory, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", directory, err)
	}
	d := os.NewFile(uintptr(fd), directory)
	if err := secure(d); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func secure(d *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("stat of %s: %w", d.Name(), err)
	}
	if st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s belongs to user %d", d.Name(), st.Uid)
	}
	if st.Mode&0o777 != 0o700 {
		if err := unix.Fchmod(int(d.Fd()), 0o700); err != nil {
			return fmt.Errorf("chmod of %s: %w", d.Name(), err)
		}
	}
	if err := eintr.Retry(func() error { return unix.Flock(int(d.Fd()), unix.LOCK_EX) }); err != nil {
		return fmt.Errorf("locking %s: %w", d.Name(), err)
	}
	return nil
}
