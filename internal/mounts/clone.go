package mounts

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Open opens the root of m, which must be visible at its Point in the
// caller's namespace, as O_PATH. It fails if another mount stands there by
// now.
func Open(m *Mount) (*os.File, error) {
	fd, err := unix.Open(m.Point, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open mount point %s: %w", m.Point, err)
	}
	id, err := mountID(fd)
	if err == nil && id != m.ID {
		err = fmt.Errorf("mount %d stands there instead of %d", id, m.ID)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open mount point %s: %w", m.Point, err)
	}
	return os.NewFile(uintptr(fd), m.Point), nil
}

// mountID tells what mount an O_PATH descriptor is on, asking no file system:
// with an empty mask and AT_STATX_DONT_SYNC fuse_getattr (fs/fuse/dir.c) sends
// nothing, and vfs_statx_path (fs/stat.c) fills in the mount.
func mountID(fd int) (int, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == unix.EACCES {
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	}
	if err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, fmt.Errorf("statx tells no mount id: Linux 5.8 or newer is needed")
	}
	return int(st.Mnt_id), nil
}

// UniqueID tells what mount root is on by a number that no other mount gets
// ever after, which [Mount.ID] is not. Kernels before 6.8 have none: it is 0
// then.
func UniqueID(root *os.File) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &st)
	if err == unix.EACCES { // as in mountID: the mount is not told then
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("statx of %s: %w", root.Name(), err)
	}
	if st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return 0, nil
	}
	return st.Mnt_id, nil
}

// Clone makes a detached mount of the part of root's mount that path names
// (relative to root; "" or "." for all of it): not of what is mounted below.
// The path can't lead out of root, nor through a symlink. The caller closes
// the result; unless attached before, the mount goes with it.
func Clone(root *os.File, path string) (*os.File, error) {
	from := root
	if path != "" && path != "." {
		part, err := OpenBeneath(root, path, unix.O_PATH)
		if err != nil {
			return nil, err
		}
		defer part.Close()
		from = part
	}
	fd, err := unix.OpenTree(int(from.Fd()), "", unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: open_tree: %w", from.Name(), err)
	}
	return os.NewFile(uintptr(fd), from.Name()), nil
}

// OpenBeneath opens path, relative to root, with root as the root directory
// of the walk, which no symlink and no other mount can bend.
func OpenBeneath(root *os.File, path string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := eintr.Get(func() (int, error) { return unix.Openat2(int(root.Fd()), path, &how) })
	name := root.Name() + "/" + strings.TrimPrefix(path, "/")
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attributes are the options of mountinfo's 6th field that mount_setattr(2)
// can give: fs/proc_namespace.c show_mnt_opts.
var attributes = map[string]uint64{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"noatime":     unix.MOUNT_ATTR_NOATIME,
	"nodiratime":  unix.MOUNT_ATTR_NODIRATIME,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
	"relatime":    unix.MOUNT_ATTR_RELATIME,
	"rw":          0,
}

// attributesOf translates the options of a mount. Options that can't be given
// to another mount (idmapped) are an error.
func attributesOf(options string) (set uint64, err error) {
	atime := uint64(unix.MOUNT_ATTR_STRICTATIME) // neither noatime nor relatime
	for _, o := range strings.Split(options, ",") {
		bit, known := attributes[o]
		switch {
		case !known:
			return 0, fmt.Errorf("mount option %q can't be carried over", o)
		case o == "noatime" || o == "relatime":
			atime = bit
		default:
			set |= bit
		}
	}
	return set | atime, nil
}

// SetOptions gives the mount that clone is the root of the per-mount options
// (as in [Mount.Options]) and nothing else: those of the mount that it was
// cloned from go.
func SetOptions(clone *os.File, options string) error {
	set, err := attributesOf(options)
	if err != nil {
		return err
	}
	attr := unix.MountAttr{
		Attr_set: set,
		Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV |
			unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME |
			unix.MOUNT_ATTR_NOSYMFOLLOW,
		Propagation: unix.MS_PRIVATE,
	}
	// fs/namespace.c do_mount_setattr: bits in both are cleared, then set.
	if err := unix.MountSetattr(int(clone.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr %s on the clone of %s: %w", options, clone.Name(), err)
	}
	return nil
}

// procPath is a path to what f is open on, for calls that take a path only.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
