package criuhook

import (
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/handover"
)

// placeholderOf returns what a placeholder is made from for a file system that
// has a record: every name that leads to a node of it, and the marks by which
// the images open files ([markedName]), each in every directory where it is
// used. A file without a name has the one by which the images know it.
func placeholderOf(fs *FileSystem) (*FileSystem, error) {
	r := fs.Record
	nodes := make(map[uint64]*handover.Node, len(r.Nodes))
	for i := range r.Nodes {
		nodes[r.Nodes[i].ID] = &r.Nodes[i]
	}
	paths, err := pathsOf(r.Nodes, nodes)
	if err != nil {
		return nil, err
	}
	for id, all := range unlinkedPaths(fs) {
		paths[id] = all
	}
	out := &FileSystem{Type: fs.Type, Source: fs.Source, Options: fs.Options, Mounts: fs.Mounts}
	for id, all := range paths {
		for _, p := range all {
			// What a placeholder may not hold, such as a device, CRIU
			// does not open by name.
			if n := nodeOf(nodes[id], p); n.check() == nil {
				out.Nodes = append(out.Nodes, n)
			}
		}
	}
	// A mark is beside the file, or in a directory that is itself mounted.
	mounted := make(map[string]bool)
	for _, m := range fs.Mounts {
		mounted[string(m.Root)] = true
	}
	for i, h := range r.Handles {
		if !h.Marked {
			continue
		}
		for _, p := range paths[h.Node] {
			if !mounted[p] {
				p = path.Dir(p)
			}
			out.Nodes = append(out.Nodes, Node{Path: Text(path.Join(p, handover.Mark(i))), Mode: unix.S_IFDIR | 0o700})
		}
	}
	sort.Slice(out.Nodes, func(i, j int) bool { return out.Nodes[i].Path < out.Nodes[j].Path })
	// Of files with two names in one directory the mark is there already.
	unique := out.Nodes[:0]
	for i, n := range out.Nodes {
		if i == 0 || n.Path != out.Nodes[i-1].Path {
			unique = append(unique, n)
		}
	}
	out.Nodes = unique
	return out, checkNodes(out)
}

// unlinkedPaths are where a placeholder has the files without a name, by node:
// where the images look for them ([namer.name]). Of one whose directory nobody
// knows that is the mount point, so any of them.
func unlinkedPaths(fs *FileSystem) map[uint64][]string {
	all := make(map[uint64][]string)
	for id, p := range fs.Record.UnlinkedPaths() {
		all[id] = []string{p}
		if hadName(fs.Record, id) {
			continue
		}
		for _, m := range fs.Mounts {
			if at := path.Join(string(m.Root), path.Base(p)); at != p {
				all[id] = append(all[id], at)
			}
		}
	}
	return all
}

// checkUnlinked says which file without a name can't be brought along when those
// who have it open are swapped, which makes it anew: see package swap.
func checkUnlinked(fs *FileSystem) error {
	paths := fs.Record.UnlinkedPaths()
	for i := range fs.Record.Nodes {
		n := &fs.Record.Nodes[i]
		if !n.Unlinked {
			continue
		}
		what := ""
		switch {
		case n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR:
			what = "is a directory that was removed"
		case n.Attr.Mode&unix.S_IFMT != unix.S_IFREG:
			what = "was removed, and is no regular file"
		case n.Attr.Nlink > 0:
			what = fmt.Sprintf("was removed, and has %d other names (hard links), which nobody tells", n.Attr.Nlink)
		default:
			continue
		}
		return fmt.Errorf("%s, which is in use on %s, %s: --strategy swap can't bring it along; --strategy handover can",
			strings.TrimPrefix(paths[n.ID], "/"), fs.Mounts[0].Point, what)
	}
	return nil
}

// maxPaths bounds how many names a placeholder is made of.
const maxPaths = 1 << 20

// pathsOf returns the paths that lead to each node. Record.Check has seen to it
// that directories have one name each and make no circle.
func pathsOf(all []handover.Node, nodes map[uint64]*handover.Node) (map[uint64][]string, error) {
	paths := map[uint64][]string{handover.RootID: {"/"}}
	var directory func(id uint64, depth int) (string, error)
	directory = func(id uint64, depth int) (string, error) {
		if known := paths[id]; known != nil {
			return known[0], nil
		}
		n := nodes[id]
		if n == nil || len(n.Names) == 0 || depth > unix.PathMax {
			return "", fmt.Errorf("no name leads to directory %d", id)
		}
		parent, err := directory(n.Names[0].Parent, depth+1)
		if err != nil {
			return "", err
		}
		p := path.Join(parent, string(n.Names[0].Name))
		paths[id] = []string{p}
		return p, nil
	}
	count := 0
	for _, n := range all {
		if n.ID == handover.RootID {
			continue
		}
		var mine []string
		for _, name := range n.Names {
			parent, err := directory(name.Parent, 0)
			if err != nil {
				return nil, err
			}
			mine = append(mine, path.Join(parent, string(name.Name)))
		}
		if count += len(mine); count > maxPaths {
			return nil, errors.New("too many names")
		}
		if len(mine) > 0 {
			paths[n.ID] = mine
		}
	}
	return paths, nil
}

// nodeOf is a node of a record as one of a placeholder.
func nodeOf(n *handover.Node, p string) Node {
	out := Node{
		Path: Text(p), Mode: n.Attr.Mode, UID: n.Attr.UID, GID: n.Attr.GID,
		Atime: Time(n.Attr.Atime), Mtime: Time(n.Attr.Mtime), Target: n.Target,
	}
	switch n.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Size = int64(n.Attr.Size)
	case unix.S_IFCHR:
		// fs/fuse keeps what new_encode_dev made of it (include/linux/kdev_t.h).
		d := n.Attr.Rdev
		out.Rdev = unix.Mkdev(d&0xfff00>>8, d&0xff|d>>12&0xfff00)
	case unix.S_IFDIR:
		for _, e := range n.Entries {
			out.Seen = append(out.Seen, Dirent{Name: e.Name, Cookie: int64(e.Off)})
		}
	}
	return out
}
