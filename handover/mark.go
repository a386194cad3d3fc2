package handover

import (
	"path"
	"strconv"
	"strings"
)

// Mark is a name that a stand-in for a restore knows in every directory: a
// directory that exists for nothing but to be left again. Who opens
//
//	DIR/Mark(i)/../FILE
//
// gets the record's handle i for the file, and no other, while the path and
// the names that the kernel remembers are those of DIR/FILE. That is how each
// description gets the very handle that it had: of an OPEN the kernel tells
// the thread, the node and the flags, and several descriptions may have those
// in common. A handle that is opened so is Handle.Marked.
func Mark(i int) string { return markPrefix + strconv.Itoa(i) }

// MarkedPath is a path of a file on the mount at mountPoint, led through the
// mark of handle i.
func MarkedPath(file, mountPoint string, i int) string {
	file, mountPoint = path.Clean(file), path.Clean(mountPoint)
	if file == mountPoint {
		return path.Join(file, Mark(i)) + "/.."
	}
	dir, base := path.Split(file)
	return dir + Mark(i) + "/../" + base
}

const (
	markPrefix = ".spfs-handle-"
	gonePrefix = ".spfs-node-"
)

// unmark is the number of a Mark.
func unmark(name string) (int, bool) {
	n, ok := numbered(name, markPrefix)
	return int(n), ok && n < maxHandles
}

// numbered is the number behind a prefix, written as we do.
func numbered(name, prefix string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == digits
}

// GoneName is a name under which a stand-in for a restore knows an unlinked
// node: its last one if no other node has that now, in the directory where it
// was, so that who opens it sees what it always saw, and " (deleted)" behind it
// after the handover. Otherwise one that is made up, in any directory.
func (r *Record) GoneName(node uint64) string {
	return string(goneNames(r)[node].Name)
}

// goneNames are the names under which unlinked nodes are found.
func goneNames(r *Record) map[uint64]Name {
	taken := make(map[Name]bool)
	gone := make(map[uint64]Name)
	for i := range r.Nodes {
		for _, name := range r.Nodes[i].Names {
			taken[name] = true
		}
	}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if !n.Unlinked {
			continue
		}
		name := Name{RootID, text(gonePrefix + strconv.FormatUint(n.ID, 10))}
		if n.Was != nil {
			name.Parent = n.Was.Parent
			if !taken[*n.Was] {
				name = *n.Was
			}
		}
		taken[name] = true
		gone[n.ID] = name
	}
	return gone
}
