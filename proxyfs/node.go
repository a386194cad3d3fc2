package proxyfs

import (
	"strings"

	"golang.org/x/sys/unix"
)

// fileID tells files apart as long as a descriptor is open on them.
type fileID struct{ dev, ino uint64 }

func fileIDOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// node is a file that the kernel knows, or a directory on the way to one.
// Everything but id, typ and locks is guarded by FS.mu.
type node struct {
	id  uint64
	typ uint32 // S_IFMT

	fd    int // O_PATH, or -1: closed to save descriptors, or not yet found in this directory
	file  fileID
	epoch uint64 // which directory fd and file are of
	proof *proof // what makes sure that it is the same file, when fd was closed
	used  bool   // since the last time descriptors were closed
	gone  bool   // not in this directory: ESTALE

	lookups  uint64 // what the kernel will FORGET
	handles  int    // open files
	users    int    // requests that use fd just now
	named    int    // names of other nodes that have this one as parent
	unlinked bool   // deleted, or never named: it stays on its file for good

	// names are where it was seen, the last one the latest. A directory
	// has one, other files may have some (see maxNames).
	names    []name
	tries    int              // names that were tried in vain in this directory, from the last
	children map[string]*node // by the latest name

	locks lockTable
}

type name struct {
	parent *node
	base   string
}

// maxNames bounds what is remembered of a file with many hard links.
const maxNames = 8

// use looks up a node by its id and pins its descriptor, which done unpins.
// ESTALE: no such node, or it is not in this directory.
func (f *FS) use(id uint64) (*node, int, error) {
	f.mu.Lock()
	n := f.nodes[id]
	if n == nil {
		f.mu.Unlock()
		return nil, -1, unix.ESTALE
	}
	fd, err := f.useLocked(n)
	f.mu.Unlock()
	return n, fd, err
}

// useLocked pins n's descriptor, opening it first if need be; f.mu is
// released meanwhile.
func (f *FS) useLocked(n *node) (int, error) {
	n.users++ // it must not be freed while f.mu is released
	for n.fd < 0 {
		err := error(unix.ESTALE)
		if !n.gone {
			err = f.findLocked(n)
		}
		if err != nil {
			f.unpinLocked(n)
			return -1, err
		}
	}
	n.used = true
	return n.fd, nil
}

// done ends what use began.
func (f *FS) done(n *node) {
	f.mu.Lock()
	f.unpinLocked(n)
	f.mu.Unlock()
}

func (f *FS) unpinLocked(n *node) {
	n.users--
	f.freeLocked(n)
}

// freeLocked frees n if nothing needs it any more, and then what only it
// needed.
func (f *FS) freeLocked(n *node) {
	for n != f.root && n.lookups == 0 && n.handles == 0 && n.users == 0 && n.named == 0 {
		if f.nodes[n.id] != n {
			return
		}
		delete(f.nodes, n.id)
		if n.fd >= 0 {
			unix.Close(n.fd)
			n.fd = -1
			f.open--
		}
		f.forgetFileLocked(n)
		names := n.names
		n.names = nil
		var next *node
		for _, nm := range names {
			if next != nil {
				f.freeLocked(next)
			}
			unhook(n, nm)
			next = nm.parent
		}
		if next == nil {
			return
		}
		n = next // the last by a loop: a deep tree is no deep stack
	}
}

// unhook undoes what one name of n means to its parent.
func unhook(n *node, nm name) {
	nm.parent.named--
	if nm.parent.children[nm.base] == n {
		delete(nm.parent.children, nm.base)
	}
}

// forgetFileLocked makes n no longer the node of its file.
func (f *FS) forgetFileLocked(n *node) {
	if f.byFile[n.file] == n {
		delete(f.byFile, n.file)
	}
}

// setNameLocked notes that n was seen as base in parent.
func (f *FS) setNameLocked(parent *node, base string, n *node) {
	if n == f.root {
		return // a directory mounted into itself
	}
	if old := parent.children[base]; old == n {
		if i := len(n.names) - 1; i >= 0 && n.names[i] != (name{parent, base}) {
			for j := range n.names {
				if n.names[j] == (name{parent, base}) {
					copy(n.names[j:], n.names[j+1:])
					n.names[i] = name{parent, base}
					break
				}
			}
		}
		return
	} else if old != nil {
		f.dropNameLocked(parent, base, false)
	}
	if parent.children == nil {
		parent.children = make(map[string]*node)
	}
	parent.children[base] = n
	parent.named++
	n.unlinked = false
	n.names = append(n.names, name{parent, base})
	for len(n.names) > maxNames || n.typ == unix.S_IFDIR && len(n.names) > 1 {
		first := n.names[0]
		n.names = append(n.names[:0], n.names[1:]...)
		unhook(n, first)
		f.freeLocked(first.parent)
	}
}

// dropNameLocked notes that base in parent is not, or no longer, what it was.
// unlinked says that it was deleted through this mount. A node that has not
// been found in this directory keeps the name, for the next one.
func (f *FS) dropNameLocked(parent *node, base string, unlinked bool) {
	n := parent.children[base]
	if n == nil {
		return
	}
	delete(parent.children, base)
	if n.fd < 0 && (n.gone || n.epoch != f.epoch) {
		return
	}
	for i, nm := range n.names {
		if nm == (name{parent, base}) {
			n.names = append(n.names[:i], n.names[i+1:]...)
			unhook(n, nm)
			break
		}
	}
	if unlinked && len(n.names) == 0 {
		n.unlinked = true
	}
	f.freeLocked(parent)
}

// maxDepth bounds walks towards the root: names are what was seen last, and
// renames behind the mount can make a ring of them.
const maxDepth = 4096

// pathLocked returns n's path from the root, without a leading slash, and
// whether it has one.
func (f *FS) pathLocked(n *node) (string, bool) {
	var bases []string
	for ; n != f.root; n = n.names[len(n.names)-1].parent {
		if len(n.names) == 0 || len(bases) == maxDepth {
			return "", false
		}
		bases = append(bases, n.names[len(n.names)-1].base)
	}
	for i, j := 0, len(bases)-1; i < j; i, j = i+1, j-1 {
		bases[i], bases[j] = bases[j], bases[i]
	}
	return strings.Join(bases, "/"), true
}
