package mounts

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one line of a mountinfo file: one struct mount.
type Mount struct {
	ID, Parent   int    // mnt_id, unique on the machine while the mount lives
	Dev          uint64 // st_dev of the file system's superblock
	Root         string // what part of the file system it shows
	Point        string // where, from the root of the namespace
	FSType       string // with its subtype: "fuse.sshfs"
	Source       string
	Options      string // of the mount: "rw,nosuid,relatime"
	SuperOptions string // of the superblock: "rw,user_id=0,group_id=0"
	Shared       int    // its peer group, or 0
	Master       int    // the peer group that it receives from, or 0
}

// FUSE says whether a FUSE daemon serves the mount.
func (m *Mount) FUSE() bool {
	return m.FSType == "fuse" || m.FSType == "fuseblk" ||
		strings.HasPrefix(m.FSType, "fuse.") || strings.HasPrefix(m.FSType, "fuseblk.")
}

// SuperOption returns the value of an option of the superblock, and whether it
// is there. An option without "=" has the value "".
func (m *Mount) SuperOption(name string) (string, bool) {
	for _, o := range strings.Split(m.SuperOptions, ",") {
		key, value, _ := strings.Cut(o, "=")
		if key == name {
			return value, true
		}
	}
	return "", false
}

// HasOption says whether the mount (not its superblock) has an option.
func (m *Mount) HasOption(name string) bool {
	for _, o := range strings.Split(m.Options, ",") {
		if o == name {
			return true
		}
	}
	return false
}

// Table is the mounts of one namespace, as seen from its root.
type Table []*Mount

// Mounts lists the mounts of the namespace.
func (ns *Namespace) Mounts() (Table, error) {
	var table Table
	err := ns.Do(func(proc *os.File) (err error) {
		table, err = threadMounts(proc)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of %v: %w", ns, err)
	}
	return table, nil
}

// Of lists the mounts that a process sees below its root.
func Of(pid int) (Table, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("the mounts of process %d: %w", pid, err)
	}
	defer f.Close()
	table, err := parseTable(f)
	if err != nil {
		return nil, fmt.Errorf("the mounts of process %d: %w", pid, err)
	}
	return table, nil
}

// threadMounts lists the mounts below the calling thread's root.
func threadMounts(proc *os.File) (Table, error) {
	path := "self/task/" + strconv.Itoa(unix.Gettid()) + "/mountinfo"
	fd, err := unix.Openat(int(proc.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "/proc/"+path)
	defer f.Close()
	return parseTable(f)
}

func parseTable(r io.Reader) (Table, error) {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, err
	}
	table := make(Table, len(infos))
	for i, info := range infos {
		m := &Mount{
			ID: info.ID, Parent: info.Parent,
			Dev:  unix.Mkdev(uint32(info.Major), uint32(info.Minor)),
			Root: info.Root, Point: info.Mountpoint,
			FSType: info.FSType, Source: info.Source,
			Options: info.Options, SuperOptions: info.VFSOptions,
		}
		for _, field := range strings.Fields(info.Optional) {
			key, value, _ := strings.Cut(field, ":")
			switch key {
			case "shared":
				m.Shared, _ = strconv.Atoi(value)
			case "master":
				m.Master, _ = strconv.Atoi(value)
			}
		}
		table[i] = m
	}
	return table, nil
}

// ByID returns the mount of that id, or nil.
func (t Table) ByID(id int) *Mount {
	for _, m := range t {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// Children returns the mounts that stand on m.
func (t Table) Children(m *Mount) []*Mount {
	var children []*Mount
	for _, c := range t {
		if c.Parent == m.ID && c != m {
			children = append(children, c)
		}
	}
	return children
}

// Containing returns the mount that a walk to path, which must be absolute and
// clean, ends on: the topmost one. It goes by parents, since the order of
// lines says nothing of what covers what (they are in order of creation), and
// since a mount below a covered directory keeps its line.
func (t Table) Containing(path string) *Mount {
	at := t.root()
	if at == nil {
		return nil
	}
	at = t.climb(at, "/")
	for i := 1; i <= len(path) && path != "/"; i++ {
		if i == len(path) || path[i] == '/' {
			at = t.climb(at, path[:i])
		}
	}
	return at
}

// Top returns the mount that is visible at the mount point, or nil if path
// (absolute, clean) is none.
func (t Table) Top(path string) *Mount {
	m := t.Containing(path)
	if m == nil || m.Point != path {
		return nil
	}
	return m
}

// climb goes up from at through what is mounted at point.
func (t Table) climb(at *Mount, point string) *Mount {
	for range t { // bounds a table that is not a tree
		next := (*Mount)(nil)
		for _, m := range t {
			if m.Parent == at.ID && m != at && m.Point == point {
				next = m
				break
			}
		}
		if next == nil {
			return at
		}
		at = next
	}
	return at
}

// root returns the mount whose parent is not in the table.
func (t Table) root() *Mount {
	for _, m := range t {
		if m.Point == "/" && (m.Parent == m.ID || t.ByID(m.Parent) == nil) {
			return m
		}
	}
	return nil
}

// throughFUSE says whether the way to m's mount point leads through FUSE,
// where a walk might wait for a daemon for ever.
func (t Table) throughFUSE(m *Mount) bool {
	for range t {
		m = t.ByID(m.Parent)
		if m == nil {
			return false
		}
		if m.FUSE() {
			return true
		}
	}
	return true // a circle
}
