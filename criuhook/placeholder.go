package criuhook

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// newPlaceholder makes the directory that stands for a file system while CRIU
// restores: its nodes, with nothing in the files. It is the root of a tmpfs
// that is mounted nowhere, so nobody can reach it who is not given the
// descriptor, and it vanishes with the last one.
//
// Empty files suffice. CRIU checks type, permissions and size
// (criu/files-reg.c: open_path); a build id it compares only where the file
// has one (validate_with_build_id returns 0, "could only be validated with
// file size", where it does not). Of private mappings it writes whole pages;
// the rest must be read from the real file, later.
func newPlaceholder(fs *FileSystem) (*os.File, error) {
	root, err := detachedTmpfs()
	if err != nil {
		return nil, err
	}
	if err := makeNodes(root, fs.Nodes); err != nil {
		root.Close()
		return nil, fmt.Errorf("placeholder of %s: %w", fs.Mounts[0].Point, err)
	}
	return root, nil
}

// detachedTmpfs returns the root of a new tmpfs without a mount point.
func detachedTmpfs() (*os.File, error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("tmpfs: fsopen: %w", err)
	}
	defer unix.Close(fd)
	for _, o := range [][2]string{{"source", "spfs-placeholder"}, {"mode", "0700"}, {"nr_inodes", "0"}} {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("tmpfs: option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	root, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, fmt.Errorf("tmpfs: fsmount: %w", err)
	}
	return os.NewFile(uintptr(root), "placeholder"), nil
}

// makeNodes makes nodes below a directory. Manifest.check has seen to it that
// parents come first and that no path leads out; the kernel sees to it again.
func makeNodes(root *os.File, nodes []Node) error {
	for i := range nodes {
		if err := makeNode(root, &nodes[i]); err != nil {
			return fmt.Errorf("%s: %w", nodes[i].Path, err)
		}
	}
	// Making a file changes its directory's times: children first.
	for i := len(nodes) - 1; i >= 0; i-- {
		if err := setTimes(root, &nodes[i]); err != nil {
			return fmt.Errorf("%s: times: %w", nodes[i].Path, err)
		}
	}
	return nil
}

// parentOf opens the directory of a node other than the root.
func parentOf(root *os.File, p string) (fd int, name string, err error) {
	dir, name := path.Split(p)
	fd, err = unix.Openat2(int(root.Fd()), "."+dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	return fd, name, err
}

func makeNode(root *os.File, n *Node) error {
	if n.Path == "/" {
		if err := unix.Fchownat(int(root.Fd()), "", int(n.UID), int(n.GID), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
		return unix.Fchmodat(int(root.Fd()), ".", n.Mode&0o7777, 0)
	}
	dir, name, err := parentOf(root, string(n.Path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = unix.Mkdirat(dir, name, 0o700)
	case unix.S_IFLNK:
		err = unix.Symlinkat(string(n.Target), dir, name)
	case unix.S_IFREG:
		err = makeFile(dir, name, n.Size)
	default:
		err = unix.Mknodat(dir, name, n.Mode&unix.S_IFMT|0o600, int(n.Rdev))
	}
	if err != nil {
		return err
	}
	// The owner first: chown(2) takes set-id bits away.
	if err := unix.Fchownat(dir, name, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if n.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Fchmodat(dir, name, n.Mode&0o7777, 0)
}

// makeFile makes a file of the right size that takes no space.
func makeFile(dir int, name string, size int64) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Ftruncate(fd, size)
}

func setTimes(root *os.File, n *Node) error {
	times := []unix.Timespec{{Sec: n.Atime[0], Nsec: n.Atime[1]}, {Sec: n.Mtime[0], Nsec: n.Mtime[1]}}
	if n.Path == "/" {
		return unix.UtimesNanoAt(int(root.Fd()), ".", times, 0)
	}
	dir, name, err := parentOf(root, string(n.Path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// positions returns what proxyfs must know of directories that the tree has
// open beyond their start: by the directory's path from the root, without a
// slash before it, each position with the name of the entry before it.
func (fs *FileSystem) positions() map[string]map[uint64]string {
	var all map[string]map[uint64]string
	for _, n := range fs.Nodes {
		if len(n.Seen) == 0 {
			continue
		}
		if all == nil {
			all = make(map[string]map[uint64]string)
		}
		at := make(map[uint64]string, len(n.Seen))
		for _, d := range n.Seen {
			at[uint64(d.Cookie)] = string(d.Name)
		}
		all[strings.TrimPrefix(string(n.Path), "/")] = at
	}
	return all
}
