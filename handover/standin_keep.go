package handover

import (
	"fmt"

	"spfs/internal/fusedev"
)

// daemons tells, in a dump, whether a request must get its answer from the
// daemon itself, whatever becomes of the dump: the tree is frozen, but CRIU
// thaws it when it holds everyone by ptrace, and if CRIU dies then, they run.
// And the kernel writes pages back when it likes to.
func (s *standIn) daemons(req fusedev.Request) bool {
	switch op := req.Opcode(); op {
	case fusedev.OpForget, fusedev.OpBatchForget, fusedev.OpInterrupt, fusedev.OpNotifyReply, fusedev.OpDestroy:
		return false // not answered, or not by anybody who could be waited for
	case fusedev.OpRelease, fusedev.OpReleasedir:
		return false // told by their handles
	case fusedev.OpWrite, fusedev.OpSetattr:
		if s.threads.kernel(req.TID()) {
			return true // fs/fuse/file.c fuse_writepages; fs/fuse/inode.c fuse_write_inode
		}
	}
	if !s.threads.goesOn(req.TID()) {
		return false
	}
	// What CRIU runs in the tree may cause faults, and must not hang. What is
	// answered is true: nobody has changed anything.
	k := s.nodes[req.NodeID()]
	switch req.Opcode() {
	case fusedev.OpGetattr, fusedev.OpStatx:
		return k == nil
	case fusedev.OpRead:
		offset, size := req.Range()
		return k == nil || !k.covered(offset, size)
	}
	return true
}

// keep leaves a request for the daemon, which gets it when it goes on
// (FUSE_NOTIFY_RESEND). Whoever asked waits, and the dump has failed.
func (s *standIn) keep(req fusedev.Request) func() {
	s.kept++
	s.failLocked(fmt.Errorf("thread %d, which is to be stopped, asked the FUSE connection for %s of node %d (%s)",
		req.TID(), req.Opcode(), req.NodeID(), s.nameOf(req.NodeID())))
	return nil
}
