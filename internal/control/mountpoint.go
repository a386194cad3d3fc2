package control

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrNotMountpoint says that nothing is mounted on a path.
var ErrNotMountpoint = errors.New("not a mount point")

// MountDevice returns the st_dev of what is mounted on a path, the topmost if
// several are. It asks the mounted file system nothing.
func MountDevice(path string) (uint64, error) {
	m, err := MountAt(path)
	if err != nil {
		return 0, err
	}
	return unix.Mkdev(uint32(m.Major), uint32(m.Minor)), nil
}

// MountAt is the line of mountinfo for what is mounted on a path, the topmost
// if several are. The error wraps ErrNotMountpoint if nothing is.
func MountAt(path string) (*mountinfo.Info, error) {
	// An O_PATH open of a mount's root asks its file system nothing: the
	// last step of a walk is neither revalidated nor checked for
	// permission (fs/namei.c complete_walk, do_o_path).
	f, err := OpenPath(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return MountOf(f)
}

// OpenPath opens a path for reference (O_PATH).
func OpenPath(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// MountOf is the line of mountinfo for the mount whose root f is open on.
func MountOf(f *os.File) (*mountinfo.Info, error) {
	path := f.Name()
	id, err := mountID(f)
	if err != nil {
		return nil, fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		match := m.ID == id && m.Mountpoint == real
		return !match, match
	})
	if err != nil {
		return nil, fmt.Errorf("reading mountinfo: %w", err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s is %w", path, ErrNotMountpoint)
	}
	return found[0], nil
}

// mountID reads an open file's mnt_id.
func mountID(f *os.File) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return 0, err
	}
	return parseMountID(b)
}

func parseMountID(fdinfo []byte) (int, error) {
	for line := range bytes.Lines(fdinfo) {
		if v, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	return 0, errors.New("no mnt_id in fdinfo")
}
