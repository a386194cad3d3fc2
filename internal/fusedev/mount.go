package fusedev

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Options are those of a FUSE mount (fs/fuse/inode.c fuse_fs_parameters).
type Options struct {
	Source  string // the first field of mountinfo's super options
	Subtype string // the type is shown as "fuse.SUBTYPE"; may be empty

	RootMode        uint32 // the type of the root, S_IFDIR but for a single file
	UserID, GroupID uint32 // the mount's owner

	AllowOther         bool
	DefaultPermissions bool
	MaxRead            uint32 // 0: what the kernel takes by itself
	BlockSize          uint32 // for "fuseblk" only; 0: the kernel's

	// Flags are the generic ones of the superblock: "ro", "sync", "dirsync",
	// "lazytime" (fs/fs_context.c vfs_parse_sb_flag).
	Flags []string

	// MountAttr are MOUNT_ATTR_ flags of the mount itself.
	MountAttr uint64
}

// ownOptions are those of a mount that SPFS serves for itself.
func ownOptions(source string) Options {
	return Options{
		Source:   source,
		Subtype:  "spfs",
		RootMode: unix.S_IFDIR,
		MaxRead:  MaxWrite,
		// Every process that may use the directory may use the mount.
		AllowOther: true,
		// The kernel checks modes by the attributes that the server
		// reports; the server, which is root, would be let through.
		DefaultPermissions: true,
	}
}

// parameters are the options in fsconfig's form. What has no value is a flag.
func (o Options) parameters(fd int) [][2]string {
	p := [][2]string{
		{"source", o.Source},
		{"fd", strconv.Itoa(fd)},
		{"rootmode", strconv.FormatUint(uint64(o.RootMode), 8)},
		{"user_id", strconv.FormatUint(uint64(o.UserID), 10)},
		{"group_id", strconv.FormatUint(uint64(o.GroupID), 10)},
	}
	if o.Subtype != "" {
		p = append(p, [2]string{"subtype", o.Subtype})
	}
	if o.MaxRead != 0 {
		p = append(p, [2]string{"max_read", strconv.FormatUint(uint64(o.MaxRead), 10)})
	}
	if o.BlockSize != 0 {
		p = append(p, [2]string{"blksize", strconv.FormatUint(uint64(o.BlockSize), 10)})
	}
	if o.AllowOther {
		p = append(p, [2]string{"allow_other"})
	}
	if o.DefaultPermissions {
		p = append(p, [2]string{"default_permissions"})
	}
	for _, f := range o.Flags {
		p = append(p, [2]string{f})
	}
	return p
}

// mountOn makes the superblock and a detached mount of it for the connection
// fd, and returns the mount and its st_dev.
func mountOn(fd int, o Options) (*Detached, uint64, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, 0, fmt.Errorf("fsopen of fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, p := range o.parameters(fd) {
		key, value := p[0], p[1]
		if value == "" && key != "source" {
			err = unix.FsconfigSetFlag(fs, key)
		} else {
			err = unix.FsconfigSetString(fs, key, value)
		}
		if err != nil {
			return nil, 0, fmt.Errorf("setting %s of the FUSE mount: %w%s", key, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, 0, fmt.Errorf("making the FUSE mount: %w%s", err, kernelLog(fs))
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(o.MountAttr))
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
