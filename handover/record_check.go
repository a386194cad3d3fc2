package handover

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBadRecord wraps what [Record.Check] finds.
var ErrBadRecord = errors.New("the record of a FUSE connection is damaged")

// What a record may hold at most.
const (
	maxDevices = 4096
	maxNodes   = 1 << 20
	maxHandles = 1 << 20
	maxNames   = 1 << 12 // of one node
	maxEntries = 1 << 20 // of one directory
	maxXattrs  = 1 << 12
	maxValue   = 64 << 10  // XATTR_SIZE_MAX
	maxListed  = 64 << 10  // XATTR_LIST_MAX
	maxContent = 128 << 20 // of all nodes

	// FirstMadeUp is the first of the file handles that a stand-in makes up.
	// A record never has one: daemons' are pointers or small numbers.
	FirstMadeUp = uint64(0xffffff5bf500) << 16
)

// Check returns an error if the record is not one that [Stop] makes: every
// node once, every parent a directory, no circle, no name that leads
// elsewhere, nothing larger than its bounds.
func (r *Record) Check() error {
	if err := r.check(); err != nil {
		return fmt.Errorf("%w: connection %d: %w", ErrBadRecord, r.ID, err)
	}
	return nil
}

func (r *Record) check() error {
	switch {
	case len(r.Devices) == 0 || len(r.Devices) > maxDevices:
		return fmt.Errorf("%d devices", len(r.Devices))
	case len(r.Nodes) > maxNodes:
		return fmt.Errorf("%d nodes", len(r.Nodes))
	case len(r.Handles) > maxHandles:
		return fmt.Errorf("%d handles", len(r.Handles))
	}
	keys := make(map[string]bool)
	for _, d := range r.Devices {
		if !validKey(d.Key) || keys[d.Key] {
			return fmt.Errorf("device key %q", d.Key)
		}
		keys[d.Key] = true
	}
	if err := r.Options.check(); err != nil {
		return err
	}
	if err := r.Init.Check(); err != nil {
		return err
	}
	nodes := make(map[uint64]*Node, len(r.Nodes))
	content := 0
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if i > 0 && n.ID <= r.Nodes[i-1].ID {
			return fmt.Errorf("node %d comes after node %d", n.ID, r.Nodes[i-1].ID)
		}
		if err := n.check(); err != nil {
			return fmt.Errorf("node %d: %w", n.ID, err)
		}
		for _, s := range n.Content {
			if content += len(s.Bytes); content > maxContent {
				return fmt.Errorf("more than %d bytes of content", maxContent)
			}
		}
		nodes[n.ID] = n
	}
	root := nodes[RootID]
	if root == nil || root.Attr.Mode&unix.S_IFMT != r.Options.RootMode || len(root.Names) != 0 || root.Unlinked {
		return errors.New("no node is its root")
	}
	if err := checkNames(r.Nodes, nodes); err != nil {
		return err
	}
	for _, h := range r.Handles {
		n := nodes[h.Node]
		if n == nil {
			return fmt.Errorf("a handle of node %d, which is missing", h.Node)
		}
		if h.Dir != (n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return fmt.Errorf("a handle of node %d, which is of another kind", h.Node)
		}
		if h.FH >= FirstMadeUp && h.FH-FirstMadeUp < 1<<32 {
			return fmt.Errorf("handle %#x of node %d is one that is made up", h.FH, h.Node)
		}
	}
	return nil
}

// validKey says whether CRIU can be given a key on its command line.
func validKey(key string) bool {
	if key == "" || len(key) > 255 {
		return false
	}
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

func (o *Options) check() error {
	if o.Type != "fuse" && o.Type != "fuseblk" && !strings.HasPrefix(o.Type, "fuse.") && !strings.HasPrefix(o.Type, "fuseblk.") {
		return fmt.Errorf("type %q", o.Type)
	}
	if len(o.Type) > 256 || len(o.Source) > unix.PathMax || len(o.Super) > unix.PathMax ||
		strings.IndexByte(o.Type, 0) >= 0 || strings.IndexByte(string(o.Source), 0) >= 0 {
		return errors.New("options of the mount out of range")
	}
	switch o.RootMode {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK:
	default:
		return fmt.Errorf("a root of mode %o", o.RootMode)
	}
	return nil
}

func (n *Node) check() error {
	if n.ID == 0 {
		return errors.New("no node has that number")
	}
	switch n.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return fmt.Errorf("mode %o", n.Attr.Mode)
	}
	if n.Attr.Mode > 0o177777 || n.Attr.Size > 1<<63-1 {
		return errors.New("attributes out of range")
	}
	for _, t := range []Time{n.Attr.Atime, n.Attr.Mtime, n.Attr.Ctime} {
		if t[1] < 0 || t[1] >= 1e9 {
			return fmt.Errorf("time %d.%d", t[0], t[1])
		}
	}
	isDir := n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case len(n.Names) > maxNames, len(n.Names) > 1 && isDir:
		return fmt.Errorf("%d names", len(n.Names))
	case len(n.Target) >= unix.PathMax, n.Target != "" && n.Attr.Mode&unix.S_IFMT != unix.S_IFLNK:
		return errors.New("a target that is none")
	case len(n.Entries) > maxEntries, len(n.Entries) > 0 && !isDir:
		return fmt.Errorf("%d entries", len(n.Entries))
	case len(n.Xattrs) > maxXattrs:
		return fmt.Errorf("%d extended attributes", len(n.Xattrs))
	case len(n.Content) > 0 && n.Attr.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("content of what is no file")
	case n.Unlinked && len(n.Names) > 0:
		return errors.New("names of a file without one")
	case n.ID != RootID && !n.Unlinked && len(n.Names) == 0:
		return errors.New("no name leads to it")
	}
	listed := 0
	for _, x := range n.Xattrs {
		if listed += len(x.Name) + 1; x.Name == "" || len(x.Name) > 255 || strings.IndexByte(string(x.Name), 0) >= 0 ||
			len(x.Value) > maxValue || listed > maxListed {
			return fmt.Errorf("extended attribute %q", x.Name)
		}
	}
	for _, e := range n.Entries {
		if e.Name != "." && e.Name != ".." && !validName(string(e.Name)) || e.Type > 15 || e.Off > 1<<63-1 {
			return fmt.Errorf("entry %q", e.Name)
		}
	}
	end := uint64(0)
	for _, s := range n.Content {
		if s.Offset < end || len(s.Bytes) == 0 || s.Offset > n.Attr.Size || uint64(len(s.Bytes)) > n.Attr.Size-s.Offset {
			return fmt.Errorf("content of %d bytes at %d", len(s.Bytes), s.Offset)
		}
		end = s.Offset + uint64(len(s.Bytes))
	}
	return nil
}

func validName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 1024 && strings.IndexByte(s, '/') < 0 && strings.IndexByte(s, 0) < 0
}

// checkNames follows every name to the root.
func checkNames(list []Node, nodes map[uint64]*Node) error {
	taken := make(map[Name]bool)
	rooted := map[uint64]bool{RootID: true}
	for i := range list {
		n := &list[i]
		for _, name := range n.Names {
			if !validName(string(name.Name)) || taken[name] {
				return fmt.Errorf("node %d: name %q", n.ID, name.Name)
			}
			taken[name] = true
			var way []uint64
			for at := name.Parent; !rooted[at]; {
				dir := nodes[at]
				if dir == nil || dir.Attr.Mode&unix.S_IFMT != unix.S_IFDIR || len(dir.Names) != 1 || len(way) > len(list) {
					return fmt.Errorf("node %d: name %q leads to no root", n.ID, name.Name)
				}
				way = append(way, at)
				at = dir.Names[0].Parent
			}
			if p := nodes[name.Parent]; p == nil || p.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("node %d: name %q is in no directory", n.ID, name.Name)
			}
			for _, at := range way {
				rooted[at] = true
			}
		}
		if w := n.Was; w != nil {
			p := nodes[w.Parent]
			if !n.Unlinked || !validName(string(w.Name)) || p == nil || p == n || p.Unlinked || p.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("node %d: it was never %q", n.ID, w.Name)
			}
		}
	}
	return nil
}
