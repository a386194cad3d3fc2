package fusedev

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOn makes the superblock and a detached mount of it for the connection
// fd, and returns the mount and its st_dev.
func mountOn(fd int, source string) (*Detached, uint64, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, 0, fmt.Errorf("fsopen of fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range []struct{ key, value string }{
		{"source", source},
		{"subtype", "spfs"},
		{"fd", strconv.Itoa(fd)},
		{"rootmode", strconv.FormatUint(unix.S_IFDIR, 8)},
		{"user_id", "0"},
		{"group_id", "0"},
		{"max_read", strconv.Itoa(MaxWrite)},
		// Every process that may use the directory may use the mount.
		{"allow_other", ""},
		// The kernel checks modes by the attributes that the server
		// reports; the server, which is root, would be let through.
		{"default_permissions", ""},
	} {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("setting %s of the FUSE mount: %w%s", o.key, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, 0, fmt.Errorf("making the FUSE mount: %w%s", err, kernelLog(fs))
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("making the FUSE mount: fsmount: %w", err)
	}
	d := &Detached{os.NewFile(uintptr(m), "detached FUSE mount")}

	// Nobody serves it yet: only what the kernel knows by itself may be
	// asked for (fs/fuse/dir.c fuse_update_get_attr).
	var st unix.Statx_t
	if err := unix.Statx(m, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		d.Close()
		return nil, 0, fmt.Errorf("statx of the FUSE mount: %w", err)
	}
	return d, unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// kernelLog returns what the kernel wrote about a failed fsconfig, as
// ": text", or nothing (fs/fsopen.c fscontext_read: one message a read).
func kernelLog(fs int) string {
	var b strings.Builder
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(fs, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return b.String()
		}
		b.WriteString(": " + strings.TrimSpace(string(buf[:n])))
	}
}
