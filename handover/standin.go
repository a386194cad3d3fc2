package handover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
	"spfs/internal/fuseinit"
)

// standIn answers a connection out of a record, in place of a daemon that
// can't: one that is stopped, or one that is not restored yet. It changes
// nothing: who asks for a change is refused, and the stand-in has failed.
//
// It reads a device of its own (FUSE_DEV_IOC_CLONE), so that nothing that the
// daemon has read and not answered yet is lost with it, and so that it leaves
// nothing behind when it ends.
type standIn struct {
	conn    *fusedev.Conn
	rec     *Record
	restore bool // the connection is a new one, and the daemon never saw it
	strict  bool // dump: the daemon goes on, and its counts of lookups must stay true

	threads *threads // dump: who asks; nil before anybody but this process can

	statfsFor int // the thread that asked for STATFS last, as the connection names it; -1: none

	pause   func()        // lets the request that is being answered be the last one
	failed  chan struct{} // closed when err is set
	initial chan struct{} // closed when INIT was answered or refused

	mu      sync.Mutex
	err     error         // why it failed
	initErr error         // why INIT was refused
	offered uint64        // what the kernel offered at INIT
	reduced uint64        // what of the daemon's it did not, without harm
	changed chan struct{} // closed and made anew when something below changes

	nodes     map[uint64]*known
	handles   *handles
	expect    map[int]int       // by thread: the handle that its next open gets
	marks     map[uint64]uint64 // lookups of marks that were not forgotten, by node
	marked    map[Name]bool     // where they were looked up
	settling  bool              // HandOver has names looked up again, which expire at once
	homes     map[uint64]Name   // where nodes are pinned
	forgotten map[uint64]uint64 // dump: what the kernel forgot, and the daemon was not told
	told      map[uint64]bool   // nodes of which something was said
	kept      int               // dump: requests for the daemon itself, read and not answered
}

// standInOn makes a stand-in that answers on a device of its own from when it
// is started. It owns the device from now on.
func standInOn(conn *fusedev.Conn, rec *Record, restore bool) *standIn {
	s := &standIn{
		conn:      conn,
		rec:       rec,
		restore:   restore,
		statfsFor: -1,
		pause:     func() {},
		failed:    make(chan struct{}),
		initial:   make(chan struct{}),
		changed:   make(chan struct{}),
		nodes:     tableOf(rec, restore),
		expect:    make(map[int]int),
		marks:     make(map[uint64]uint64),
		marked:    make(map[Name]bool),
		forgotten: make(map[uint64]uint64),
		told:      make(map[uint64]bool),
		homes:     make(map[uint64]Name),
	}
	for _, p := range topDown(rec) {
		s.homes[p.node] = p.name
	}
	s.handles = newHandles(rec.Handles, func(h *Handle) bool {
		// fs/fuse/file.c fuse_file_open: without OPEN there is no RELEASE,
		// and the handle is 0.
		if h.Dir {
			return !s.lacks(fusedev.OpOpendir)
		}
		return !s.lacks(fusedev.OpOpen)
	})
	return s
}

// unknownMaxWrite is taken for what was negotiated if nobody knows: read(2)
// wants room for the largest request, and what is not touched costs nothing.
const unknownMaxWrite = 32 << 20

// start begins to answer, also again after a pause.
func (s *standIn) start() error {
	stop, err := fusedev.NewStop()
	if err != nil {
		return err
	}
	size := s.rec.Init.MaxWrite
	if !s.rec.Init.Known {
		size = unknownMaxWrite
		if s.restore {
			size = fuseinit.PlainMaxWrite
		}
	}
	ended := make(chan struct{})
	s.pause = func() {
		stop.Tell()
		<-ended
		stop.Close()
		s.pause = func() {}
	}
	go func() {
		defer close(ended)
		over, err := s.conn.ServeUntil(stop, size, s.handle)
		switch {
		case err != nil:
			s.fail(err)
		case over:
			s.fail(errors.New("the FUSE connection was aborted or unmounted"))
		}
	}()
	return nil
}

// end lets the request that is being answered be the last one, and gives the
// device back. Requests that come after wait for whoever reads the other
// devices, and so do those that were kept for the daemon.
func (s *standIn) end() error {
	s.pause()
	var err error
	if s.kept > 0 {
		// Before the device is closed: what was read through it and not
		// answered would fail (fs/fuse/dev.c fuse_dev_release).
		err = s.conn.Resend()
	}
	return errors.Join(err, s.conn.Close())
}

// told is what a stand-in for a dump has done that its daemon, when it goes
// on, knows nothing of.
type told struct {
	lookups   map[uint64]uint64 // nodes that were given, how often
	forgotten map[uint64]uint64 // nodes that the kernel forgot, how often
}

// endDump is end for a dump whose daemon goes on: attributes that the kernel
// has from the stand-in are not believed any longer.
func (s *standIn) endDump() (told, error) {
	s.mu.Lock()
	nodes := slices.Collect(maps.Keys(s.told))
	s.mu.Unlock()
	var errs []error
	for _, node := range nodes {
		errs = append(errs, s.conn.InvalidateAttr(node))
	}
	errs = append(errs, s.end())
	t := told{lookups: make(map[uint64]uint64), forgotten: s.forgotten}
	for id, k := range s.nodes {
		if k.given > 0 {
			t.lookups[id] = k.given
		}
	}
	return t, errors.Join(errs...)
}

// fail notes the first reason why what is done can't be trusted.
func (s *standIn) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

func (s *standIn) failLocked(err error) {
	if s.err == nil {
		s.err = err
		close(s.failed)
	}
}

// failure is why the stand-in failed, or nil.
func (s *standIn) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// await waits until is, which is called with the lock held, says so.
func (s *standIn) await(ctx context.Context, is func() bool) error {
	for {
		s.mu.Lock()
		done, err, changed := is(), s.err, s.changed
		s.mu.Unlock()
		switch {
		case err != nil:
			return err
		case done:
			return nil
		}
		select {
		case <-changed:
		case <-s.failed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitReleased waits until nobody has a made-up handle open. The error says
// which node is, if ctx ends before.
func (s *standIn) awaitReleased(ctx context.Context) error {
	err := s.await(ctx, func() bool { return len(s.handles.madeUp) == 0 })
	if err == nil || ctx.Err() == nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, node := range s.handles.madeUp {
		return fmt.Errorf("%d files are open that no recorded handle was left for, one of them node %d (%s): %w",
			len(s.handles.madeUp), node, s.nameOf(node), err)
	}
	return err
}

// nameOf is a name of a node, for an error.
func (s *standIn) nameOf(node uint64) string {
	k := s.nodes[node]
	switch {
	case node == RootID:
		return "the root"
	case k == nil:
		return "not recorded"
	case len(k.Names) > 0:
		return fmt.Sprintf("%q", k.Names[0].Name)
	case k.Was != nil:
		return fmt.Sprintf("%q, deleted", k.Was.Name)
	}
	return "deleted"
}

// handle answers one request. It runs on one goroutine, and must not wait for
// anything that another request could be needed for.
func (s *standIn) handle(req fusedev.Request) {
	s.mu.Lock()
	reply := s.reply(req)
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	// A reply may wake whoever waits for the effect, and is written last.
	if reply != nil {
		reply()
	}
}

// data, and errno below, are replies.
func (s *standIn) data(req fusedev.Request, b []byte) func() {
	return func() { s.answer(req, b) }
}

func (s *standIn) errno(req fusedev.Request, errno unix.Errno) func() {
	return func() { s.refuse(req, errno) }
}

// optional are the operations that a daemon may lack without harm: the kernel
// keeps the ENOSYS in mind (fs/fuse, fc->no_open and the like).
var optional = func() (bits uint64) {
	for _, op := range []fusedev.Opcode{
		fusedev.OpOpen, fusedev.OpOpendir, fusedev.OpFlush, fusedev.OpFsync, fusedev.OpFsyncdir,
		fusedev.OpAccess, fusedev.OpGetxattr, fusedev.OpListxattr, fusedev.OpStatx, fusedev.OpLseek,
		fusedev.OpPoll, fusedev.OpBmap,
	} {
		bits |= 1 << op
	}
	return bits
}()

// lacks tells whether the daemon has answered an operation with ENOSYS.
func (s *standIn) lacks(op fusedev.Opcode) bool {
	return op < 64 && s.rec.Init.Unsupported&optional&(1<<op) != 0
}

// reply does what a request asks for, and returns how to answer it, or nil.
func (s *standIn) reply(req fusedev.Request) func() {
	op := req.Opcode()
	if s.threads != nil && s.daemons(req) {
		return s.keep(req)
	}
	if s.lacks(op) {
		return s.errno(req, unix.ENOSYS)
	}
	switch op {
	case fusedev.OpInit:
		return s.init(req)
	case fusedev.OpLookup:
		return s.lookup(req)
	case fusedev.OpForget:
		s.forget(req.NodeID(), req.U64(0))
		return nil
	case fusedev.OpBatchForget:
		s.batchForget(req)
		return nil
	case fusedev.OpInterrupt, fusedev.OpNotifyReply:
		return nil // nothing here takes long; nothing was asked for
	case fusedev.OpOpen, fusedev.OpOpendir:
		return s.open(req)
	case fusedev.OpRelease, fusedev.OpReleasedir:
		return s.release(req)
	case fusedev.OpFlush, fusedev.OpFsync, fusedev.OpFsyncdir, fusedev.OpSyncfs, fusedev.OpDestroy:
		return s.errno(req, 0) // nothing was written
	case fusedev.OpStatfs:
		s.statfsFor = req.TID()
		return s.statfsReply(req)
	case fusedev.OpIoctl:
		return s.errno(req, unix.ENOTTY)
	}
	if _, ok := s.markOf(req.NodeID()); ok {
		return s.askMark(req)
	}
	k := s.nodes[req.NodeID()]
	if k == nil {
		return s.errno(req, unix.ESTALE)
	}
	s.told[k.ID] = true
	switch op {
	case fusedev.OpGetattr:
		return s.getattr(req, k)
	case fusedev.OpStatx:
		return s.statxReply(req, k)
	case fusedev.OpAccess:
		return s.errno(req, 0) // root asks
	case fusedev.OpReadlink:
		k.read = true // FUSE_CACHE_SYMLINKS
		return s.data(req, []byte(k.Target))
	case fusedev.OpRead:
		return s.read(req, k)
	case fusedev.OpReaddir, fusedev.OpReaddirplus:
		return s.readdir(req, k)
	case fusedev.OpGetxattr, fusedev.OpListxattr:
		return s.getxattr(req, k)
	case fusedev.OpLseek:
		return s.lseek(req, k)
	case fusedev.OpPoll:
		return s.poll(req)
	case fusedev.OpBmap:
		return s.errno(req, unix.EINVAL)
	}
	s.failLocked(fmt.Errorf("thread %d asked the FUSE connection for %s of node %d (%s), which nobody may answer before its daemon runs",
		req.TID(), op, k.ID, s.nameOf(k.ID)))
	return s.errno(req, unix.EROFS)
}
