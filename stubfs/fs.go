package stubfs

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

const errAgain = unix.EAGAIN

// Target forwards requests to a directory.
type Target interface {
	fuse.RawFileSystem

	// Retarget forwards to another directory from now on. Node ids and file
	// handles stay valid. It is called only while no request runs, FORGET
	// included. If it fails, the target is as it was.
	Retarget(dir *os.File) error

	// Deleted takes the name from the node at path, and puts another file in
	// its place, which it keeps open for as long as the node is used. The files
	// are the target's from then on. It is called only while no request runs,
	// FORGET included.
	// It returns the node, 0 if there is none, and where it had its name.
	Deleted(path string, file *os.File, open []*os.File) (node, parent uint64, base string, err error)

	// Nodes lists the node ids that the kernel knows.
	Nodes() []uint64

	// Path is a node's path from the directory, for people to read.
	Path(nodeid uint64) string

	Close() error
}

// Conn is what the gate needs of a connection: see [fusedev.Conn].
type Conn interface {
	Serve(handle func(fusedev.Request, *fusedev.Buffers)) error
	Write(answer []byte) error
	Answer(unique uint64, errno unix.Errno) error
	InvalidateAttr(node uint64) error
	InvalidateData(node uint64, offset, size int64) error
	DeleteEntry(parent, child uint64, name string) error
}

// FS serves a connection through the gate. It begins shut, onto nothing.
type FS struct {
	conn   Conn
	kind   Kind
	gate   *gate
	server *fuse.ProtocolServer
	fwd    *forward
	fate   func(tid int) fate
	done   chan struct{} // closed when Serve returns

	modeMu sync.Mutex // one change at a time

	// Requests that pass the shut gate change the target too (FORGET), but
	// not while it is retargeted.
	forgetMu sync.RWMutex

	watchMu  sync.Mutex
	watching bool
}

// forward is the file system that the protocol server knows, so that there
// can be one before there is a directory.
type forward struct{ fuse.RawFileSystem }

// Kind says how targets are made, and what connection they need.
type Kind struct {
	// New makes the target when the gate is first opened. dir stays the
	// gate's; the target is closed by the gate.
	New func(dir *os.File) (Target, error)

	// Configure sets what is negotiated with the kernel, before there is a
	// target.
	Configure func(*fuse.MountOptions)
}

// New serves conn, which stays the caller's to close after Serve.
func New(conn Conn, kind Kind) *FS {
	f := &FS{
		conn: conn,
		kind: kind,
		gate: newGate(),
		fwd:  &forward{fuse.NewDefaultRawFileSystem()},
		fate: fateOf,
		done: make(chan struct{}),
	}
	f.gate.run = f.runHeld
	f.server = fuse.NewProtocolServer(f.fwd, f.options())
	return f
}

// options is what is negotiated with the kernel: what the target needs, and
// what the gate can't do without.
func (f *FS) options() *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name:              "spfs",
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:            log.New(io.Discard, "", 0),
		PanicHandler: func(v any) fuse.Status {
			slog.Error("a request failed unexpectedly", "panic", v)
			return fuse.EIO
		},
	}
	f.kind.Configure(o)
	o.MaxWrite = fusedev.MaxWrite
	// Requests nobody waits for (RELEASE, readahead, write-back) are held
	// like others; past this number the kernel would keep the next to
	// itself, the write-back that closing waits for among them
	// (fs/fuse/dev.c flush_bg_queue).
	o.MaxBackground = 0xffff
	o.CongestionThreshold = 0xffff
	// Every open file must have a handle, to be found again in another
	// directory; data must not be written later than the program wrote it,
	// to a directory that it did not write to.
	o.DisabledCapabilities |= fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT |
		fuse.CAP_EXPORT_SUPPORT | fuse.CAP_WRITEBACK_CACHE | fuse.CAP_PASSTHROUGH
	return o
}

// Serve answers requests until the connection ends. It leaves nothing behind
// but the connection itself.
func (f *FS) Serve() error {
	err := f.conn.Serve(f.handle)
	idle := f.gate.end()
	close(f.done)
	<-idle
	f.modeMu.Lock()
	defer f.modeMu.Unlock()
	if t := f.target(); t != nil {
		if cerr := t.Close(); err == nil {
			err = cerr
		}
	}
	return err
}

// target is what requests are forwarded to, or nil. Call with modeMu or
// forgetMu held, or while requests run.
func (f *FS) target() Target {
	t, _ := f.fwd.RawFileSystem.(Target)
	return t
}

// handle takes one request from the connection.
func (f *FS) handle(req fusedev.Request, b *fusedev.Buffers) {
	switch req.Opcode() {
	case fusedev.OpInterrupt:
		f.interrupt(req)
	case fusedev.OpForget, fusedev.OpBatchForget, fusedev.OpInit, fusedev.OpDestroy:
		f.forgetMu.RLock()
		f.execute(req, b, true)
		f.forgetMu.RUnlock()
	default:
		runs, waits := f.gate.admit(req)
		if runs {
			f.execute(req, b, true)
			f.gate.finish(req, false)
		} else if waits != nil && givesBack(req) {
			// A process that is exiting already gets no signal any
			// more that would make it known here (kernel/signal.c
			// wants_signal).
			f.letDie(waits)
		}
	}
}

// runHeld executes a request that has waited.
func (f *FS) runHeld(h *held, w *lockWait) {
	if w != nil {
		status := f.fwd.SetLkw(w.cancel, (*fuse.LkIn)(unsafe.Pointer(&h.req[0])))
		if f.gate.finishLock(h, status == fuse.EINTR) {
			f.report(f.conn.Answer(h.req.Unique(), unix.Errno(status)))
		}
		return
	}
	b := fusedev.GetBuffers()
	defer b.Put()
	req := b.Copy(h.req)
	f.execute(req, b, !h.detached)
	f.gate.finish(h.req, h.detached)
}

// execute runs a request, and answers it unless that has been done.
func (f *FS) execute(req fusedev.Request, b *fusedev.Buffers, answer bool) {
	out := b.Out()
	n, status := f.server.HandleRequest([][]byte{req}, [][]byte{out})
	switch {
	case !answer:
	case !status.Ok(): // the request made no sense to the library
		f.report(f.conn.Answer(req.Unique(), unix.Errno(status)))
	case n > 0:
		f.report(f.conn.Write(out[:n]))
	}
}

// report logs an error that nobody waits for.
func (f *FS) report(err error) {
	if err != nil {
		slog.Error("answering a request", "error", err)
	}
}

// IsOpen says whether requests are forwarded.
func (f *FS) IsOpen() bool { return f.gate.isOpen() }

// Open forwards requests to dir, an open directory that stays the caller's:
// first those that wait, in order. A gate that is open onto another directory
// is shut first. If it fails, the gate is as it was.
func (f *FS) Open(ctx context.Context, dir *os.File) error {
	f.modeMu.Lock()
	defer f.modeMu.Unlock()
	wasOpen := f.gate.isOpen()
	if err := f.shut(ctx); err != nil {
		return err
	}
	if err := f.retarget(dir); err != nil {
		if wasOpen {
			f.gate.reopen()
		}
		return fmt.Errorf("forwarding to %s: %w", dir.Name(), err)
	}
	f.gate.reopen()
	return nil
}

func (f *FS) retarget(dir *os.File) error {
	f.forgetMu.Lock()
	defer f.forgetMu.Unlock()
	if t := f.target(); t != nil {
		return t.Retarget(dir)
	}
	t, err := f.kind.New(dir)
	if err != nil {
		return err
	}
	f.fwd.RawFileSystem = t
	return nil
}
