package handover

import (
	"os"
	"path"
	"strings"
)

// Unlinked is a file without a name, of which the daemon has handles that
// nobody took.
type Unlinked struct {
	Node uint64
	File *os.File   // O_PATH
	Open []*os.File // on each of the handles
}

// Unlinked are the files without a name, for whoever restores the tree's files
// elsewhere (on a stub) and has to find these again. It is called after
// [Adopted.HandOver]. The descriptors are a's until Close.
func (a *Adopted) Unlinked() []Unlinked {
	open := make(map[uint64][]*os.File)
	for _, u := range a.unused {
		open[u.node] = append(open[u.node], u.file)
	}
	var all []Unlinked
	for _, p := range a.pins {
		if p.gone {
			all = append(all, Unlinked{p.node, p.file, open[p.node]})
		}
	}
	return all
}

// UnlinkedPaths are the paths below the root by which the images know the files
// without a name, by node. The record must be one that Check found right.
func (r *Record) UnlinkedPaths() map[uint64]string {
	name := make(map[uint64]Name) // of directories
	for i := range r.Nodes {
		if n := &r.Nodes[i]; len(n.Names) == 1 {
			name[n.ID] = n.Names[0]
		}
	}
	paths := make(map[uint64]string)
	for id, last := range goneNames(r) {
		names := []string{string(last.Name)}
		for at := last.Parent; at != RootID; at = name[at].Parent {
			names = append([]string{string(name[at].Name)}, names...)
		}
		paths[id] = path.Clean("/" + strings.Join(names, "/"))
	}
	return paths
}
