package criuhook

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// check returns what is wrong with m, whoever wrote it: the images are not
// trusted, and what is made of a manifest is made by root.
func (m *Manifest) check() error {
	names := make(map[string]bool)
	for _, i := range m.Images {
		switch {
		case checkName(i.Name) != nil:
			return fmt.Errorf("image: %w", checkName(i.Name))
		case names[i.Name]:
			return fmt.Errorf("image %s is listed twice", i.Name)
		case i.Size < 0:
			return fmt.Errorf("image %s: size %d", i.Name, i.Size)
		}
		names[i.Name] = true
	}
	keys := make(map[string]bool)
	points := make(map[Text]bool)
	inherited := make(map[string]bool)
	for n := range m.FileSystems {
		fs := &m.FileSystems[n]
		if len(fs.Mounts) == 0 {
			return fmt.Errorf("file system %d (%s) is mounted nowhere", n, fs.Type)
		}
		for _, mt := range fs.Mounts {
			if err := checkPath(string(mt.Point)); err != nil {
				return fmt.Errorf("mount point: %w", err)
			}
			if err := checkPath(string(mt.Root)); err != nil {
				return fmt.Errorf("mount %s: root: %w", mt.Point, err)
			}
			if points[mt.Point] {
				return fmt.Errorf("mount point %s is listed twice", mt.Point)
			}
			points[mt.Point] = true
			if m.HostNamespace {
				continue
			}
			if err := checkKey(mt.Key); err != nil {
				return fmt.Errorf("mount %s: %w", mt.Point, err)
			}
			if keys[mt.Key] {
				return fmt.Errorf("mount %s: its key %q is another's too", mt.Point, mt.Key)
			}
			keys[mt.Key] = true
		}
		if err := fs.checkContent(); err != nil {
			return err
		}
		if fs.Record == nil {
			continue
		}
		for _, d := range fs.Record.Devices {
			if inherited[d.Key] {
				return fmt.Errorf("device key %q is listed twice", d.Key)
			}
			inherited[d.Key] = true
		}
	}
	return nil
}

// checkContent checks what is said of the files of a file system.
func (fs *FileSystem) checkContent() error {
	if fs.Record == nil {
		return checkNodes(fs)
	}
	if len(fs.Nodes) > 0 {
		return errors.New("a file system with nodes and a record")
	}
	return fs.Record.Check()
}

func checkNodes(fs *FileSystem) error {
	modes := make(map[Text]uint32, len(fs.Nodes))
	for i := range fs.Nodes {
		n := &fs.Nodes[i]
		if err := n.check(); err != nil {
			return fmt.Errorf("%s: %w", n.Path, err)
		}
		if _, ok := modes[n.Path]; ok {
			return fmt.Errorf("%s is listed twice", n.Path)
		}
		if n.Path != "/" {
			parent, ok := modes[Text(path.Dir(string(n.Path)))]
			if !ok || parent&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("%s has no directory before it", n.Path)
			}
		} else if n.Mode&unix.S_IFMT != unix.S_IFDIR && len(fs.Nodes) > 1 {
			return errors.New("the root is no directory and has files below")
		}
		modes[n.Path] = n.Mode
	}
	for _, mt := range fs.Mounts {
		if _, ok := modes[mt.Root]; !ok {
			return fmt.Errorf("mount %s shows %s, which is not listed", mt.Point, mt.Root)
		}
	}
	return nil
}

func (n *Node) check() error {
	if err := checkPath(string(n.Path)); err != nil {
		return err
	}
	if n.Mode&^(unix.S_IFMT|0o7777) != 0 {
		return fmt.Errorf("mode %#o", n.Mode)
	}
	if n.Size < 0 {
		return fmt.Errorf("size %d", n.Size)
	}
	for _, t := range []Time{n.Atime, n.Mtime} {
		if t[1] < 0 || t[1] > 999_999_999 {
			return fmt.Errorf("%d nanoseconds", t[1])
		}
	}
	kind := n.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFLNK:
		if n.Target == "" || len(n.Target) >= unix.PathMax || strings.Contains(string(n.Target), "\x00") {
			return errors.New("a symbolic link to nowhere")
		}
	case unix.S_IFCHR:
		// CRIU keeps only these open by name (dump_chrdev in its
		// files.c); any other would hand a device to whoever can write
		// a manifest.
		if unix.Major(n.Rdev) != memMajor {
			return fmt.Errorf("device %d:%d", unix.Major(n.Rdev), unix.Minor(n.Rdev))
		}
		switch unix.Minor(n.Rdev) {
		case 3, 5, 7, 8, 9: // null, zero, full, random, urandom
		default:
			return fmt.Errorf("device %d:%d", unix.Major(n.Rdev), unix.Minor(n.Rdev))
		}
	default:
		return fmt.Errorf("file type %#o", kind)
	}
	if kind != unix.S_IFLNK && n.Target != "" {
		return errors.New("a link target, but it is no link")
	}
	if kind != unix.S_IFCHR && n.Rdev != 0 {
		return errors.New("a device number, but it is no device")
	}
	if kind != unix.S_IFDIR && len(n.Seen) > 0 {
		return errors.New("directory entries, but it is no directory")
	}
	for _, d := range n.Seen {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		if err := checkName(string(d.Name)); err != nil {
			return err
		}
	}
	return nil
}

const memMajor = 1 // the kernel's MEM_MAJOR

// checkPath accepts absolute paths in their shortest form only.
func checkPath(p string) error {
	switch {
	case p == "/":
		return nil
	case len(p) >= unix.PathMax:
		return fmt.Errorf("a path of %d bytes", len(p))
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("%q is not absolute", p)
	}
	for _, name := range strings.Split(p[1:], "/") {
		if err := checkName(name); err != nil {
			return fmt.Errorf("path %q: %w", p, err)
		}
	}
	return nil
}

// checkName accepts what a directory entry may be called.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not a name", name)
	case len(name) > unix.NAME_MAX:
		return fmt.Errorf("a name of %d bytes", len(name))
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%q is not a name", name)
	}
	return nil
}

// checkKey accepts keys that cannot be taken for anything else inside CRIU's
// "mnt[KEY]:VALUE".
func checkKey(key string) error {
	if key == "" || len(key) > 200 {
		return fmt.Errorf("a key of %d bytes", len(key))
	}
	if i := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("[]:", r) }); i >= 0 {
		return fmt.Errorf("key %q: %q is not allowed in it", key, key[i])
	}
	return nil
}
