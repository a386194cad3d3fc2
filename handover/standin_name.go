package handover

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/bytetext"
	"spfs/internal/fusedev"
)

// How long the kernel may believe what a stand-in says, in seconds. In a
// restore that is until the handover, which takes all of it back. In a dump
// what is believed stays when the daemon goes on.
const (
	validRestore = 24 * 60 * 60
	validDump    = 1
)

func (s *standIn) valid() uint64 {
	if s.restore {
		return validRestore
	}
	return validDump
}

// lookup counts one more for the node, as the kernel does (fs/fuse/inode.c
// fuse_iget, fs/fuse/dir.c fuse_dentry_revalidate).
func (s *standIn) lookup(req fusedev.Request) func() {
	dir, name := s.nodes[req.NodeID()], req.Name()
	if dir == nil {
		return s.errno(req, unix.ESTALE)
	}
	var child *known
	if s.restore {
		if i, ok := unmark(name); ok {
			return s.lookupMark(req, dir, i)
		}
		if id, ok := numbered(name, gonePrefix); ok {
			if k := s.nodes[id]; k != nil && k.Unlinked {
				child = k
			}
		}
	}
	if child == nil {
		child = dir.byEntry[name]
	}
	switch {
	case child == nil && s.restore:
		// Nothing of what is restored has that name, and it is not kept:
		// no time of validity, and the daemon is asked next time.
		return s.errno(req, unix.ENOENT)
	case child == nil:
		// It may well exist. Who is told otherwise would dump the wrong.
		return s.errno(req, unix.EIO)
	}
	if s.strict {
		// An error that takes no name away from anybody (fs/fuse/dir.c,
		// fuse_dentry_revalidate). EINTR is another, but many programs
		// would try again for as long as they get it.
		s.failLocked(fmt.Errorf("thread %d looked for %q, node %d: the kernel would count one more than its daemon, which goes on, knows of",
			req.TID(), name, child.ID))
		return s.errno(req, unix.ENOMEM)
	}
	child.given++
	s.told[child.ID] = true
	o := s.entryOut(child)
	return s.data(req, s.entry(&o))
}

// entryOut is what is said of a node by its name.
func (s *standIn) entryOut(k *known) fuse.EntryOut {
	o := fuse.EntryOut{
		NodeId: k.ID, Generation: k.Generation,
		EntryValid: s.valid(), AttrValid: s.valid(),
		Attr: k.attr(),
	}
	if s.settling {
		o.EntryValid = 0 // the next lookup is to be asked, too
	}
	return o
}

// lookupMark answers with a directory that is looked up again each time.
func (s *standIn) lookupMark(req fusedev.Request, dir *known, i int) func() {
	switch {
	case i >= len(s.rec.Handles):
		return s.errno(req, unix.ENOENT)
	case req.TID() == 0:
		s.failLocked(fmt.Errorf("a process of another pid namespace opened handle %d", i))
		return s.errno(req, unix.EIO)
	}
	s.expect[req.TID()] = i
	id := FirstMadeUp + uint64(i)
	s.marks[id]++
	s.marked[Name{dir.ID, bytetext.Text(req.Name())}] = true
	return s.data(req, s.entry(&fuse.EntryOut{NodeId: id, AttrValid: s.valid(), Attr: markAttr(id)}))
}

// markOf tells whether a node is that of a mark.
func (s *standIn) markOf(node uint64) (int, bool) {
	if !s.restore || node < FirstMadeUp || node-FirstMadeUp >= uint64(len(s.rec.Handles)) {
		return 0, false
	}
	return int(node - FirstMadeUp), true
}

func markAttr(id uint64) fuse.Attr {
	return fuse.Attr{Ino: id, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
}

// askMark answers what a way through a mark needs.
func (s *standIn) askMark(req fusedev.Request) func() {
	switch req.Opcode() {
	case fusedev.OpGetattr:
		return s.data(req, s.attrOut(&fuse.AttrOut{AttrValid: s.valid(), Attr: markAttr(req.NodeID())}))
	case fusedev.OpAccess:
		return s.errno(req, 0)
	}
	return s.errno(req, unix.EIO)
}

// forget takes back what lookup counted.
func (s *standIn) forget(node, n uint64) {
	if s.marks[node] > 0 {
		if s.marks[node] -= min(n, s.marks[node]); s.marks[node] == 0 {
			delete(s.marks, node)
		}
		return
	}
	k := s.nodes[node]
	switch {
	case !s.restore:
		s.forgotten[node] += n
	case k == nil || n > k.given:
		s.failLocked(fmt.Errorf("the kernel forgot node %d %d times, and had not been given it so often", node, n))
	default:
		k.given -= n
	}
}

// batchForget is forget for each of fuse_batch_forget_in's.
func (s *standIn) batchForget(req fusedev.Request) {
	const first, size = 8, 16
	for i := range min(int(req.U32(0)), len(req.Arg())/size) {
		s.forget(req.U64(first+i*size), req.U64(first+i*size+8))
	}
}
