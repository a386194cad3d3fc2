package handover

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// daemon is a FUSE daemon that has what a record says, and bears no mistake:
// every node and handle that it is asked about must be one that it gave, and
// none may be given back more often than that.
type daemon struct {
	t     *testing.T
	done  chan struct{}
	pause func()

	mu      sync.Mutex
	nodes   map[uint64]*daemonNode
	handles map[daemonHandle]int // how many opens of it there are
	next    uint64
	asked   []string // "OPCODE node"
	written uint64   // the handle that was written by last
	wrong   []string
}

type daemonNode struct {
	id       uint64
	attr     fuse.Attr
	content  []byte
	entries  map[string]*daemonNode
	lookups  uint64
	readdirs []fuse.DirEntry
}

type daemonHandle struct{ node, fh uint64 }

// daemonOf makes the daemon that a record is of.
func daemonOf(t *testing.T, rec *Record) *daemon {
	d := &daemon{t: t, nodes: make(map[uint64]*daemonNode), handles: make(map[daemonHandle]int), next: 1000}
	for id, k := range tableOf(rec, false) {
		n := &daemonNode{id: id, attr: k.attr(), lookups: k.owed(), entries: make(map[string]*daemonNode)}
		if n.attr.Mode&unix.S_IFMT == unix.S_IFREG {
			n.content = make([]byte, n.attr.Size)
			for i := range n.content {
				n.content[i] = contentAt(id, i)
			}
		}
		for _, e := range k.Entries {
			n.readdirs = append(n.readdirs, fuse.DirEntry{Name: string(e.Name), Ino: e.Ino, Mode: e.Type << 12, Off: e.Off})
		}
		d.nodes[id] = n
	}
	for _, n := range rec.Nodes {
		for _, name := range n.Names {
			d.nodes[name.Parent].entries[string(name.Name)] = d.nodes[n.ID]
		}
	}
	for _, h := range rec.Handles {
		d.handles[daemonHandle{h.Node, h.FH}]++
	}
	return d
}

// contentAt is the byte at i of every file that is a node.
func contentAt(node uint64, i int) byte { return byte(node*31+uint64(i)*7) | 1 }

// serve answers on f, which stays the caller's, until the connection ends or
// the daemon is paused.
func (d *daemon) serve(f *os.File) {
	stop, err := fusedev.NewStop()
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	d.done = done
	d.pause = func() {
		stop.Tell()
		<-done
	}
	fd := int(f.Fd())
	go func() {
		defer close(done)
		defer stop.Close()
		buf := make([]byte, 2<<20)
		for {
			if told, err := stop.Wait(fd); told || err != nil {
				return
			}
			n, err := unix.Read(fd, buf)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
				continue
			case err != nil:
				return
			}
			req := fusedev.Request(buf[:n])
			out, errno := d.reply(req)
			if out == nil && errno == noReply {
				continue
			}
			s := make([]byte, 16, 16+len(out))
			*(*fuse.OutHeader)(ptr(s)) = fuse.OutHeader{Length: uint32(16 + len(out)), Status: -int32(errno), Unique: req.Unique()}
			if _, err := unix.Write(fd, append(s, out...)); err != nil && !errors.Is(err, unix.ENOENT) {
				d.note("answering %s: %v", req.Opcode(), err)
			}
		}
	}()
}

const noReply = unix.Errno(0xfff)

func (d *daemon) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wrong = append(d.wrong, fmt.Sprintf(format, args...))
}

func (d *daemon) reply(req fusedev.Request) ([]byte, unix.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	op := req.Opcode()
	d.asked = append(d.asked, fmt.Sprintf("%s %d", op, req.NodeID()))
	bad := func(format string, args ...any) ([]byte, unix.Errno) {
		d.wrong = append(d.wrong, fmt.Sprintf(format, args...))
		return nil, unix.EIO
	}
	forget := func(id, n uint64) {
		k := d.nodes[id]
		if k == nil || k.lookups < n {
			bad("node %d is to be forgotten %d times", id, n)
			return
		}
		k.lookups -= n
	}
	switch op {
	case fusedev.OpForget:
		forget(req.NodeID(), req.U64(0))
		return nil, noReply
	case fusedev.OpBatchForget:
		for i := range int(req.U32(0)) {
			forget(req.U64(8+16*i), req.U64(16+16*i))
		}
		return nil, noReply
	case fusedev.OpInterrupt:
		return nil, noReply
	case fusedev.OpDestroy:
		return nil, 0
	}
	k := d.nodes[req.NodeID()]
	if k == nil {
		return bad("%s of node %d", op, req.NodeID())
	}
	if k.id != RootID && k.lookups == 0 {
		return bad("%s of node %d, which was forgotten", op, k.id)
	}
	opened := func(fh uint64) bool { return d.handles[daemonHandle{k.id, fh}] > 0 }
	switch op {
	case fusedev.OpLookup:
		c := k.entries[req.Name()]
		if c == nil {
			return nil, unix.ENOENT
		}
		c.lookups++
		return raw(&fuse.EntryOut{NodeId: c.id, AttrValid: 1, EntryValid: 1, Attr: c.attr}), 0
	case fusedev.OpGetattr:
		return raw(&fuse.AttrOut{AttrValid: 1, Attr: k.attr}), 0
	case fusedev.OpStatfs:
		return raw(&fuse.StatfsOut{}), 0
	case fusedev.OpOpen, fusedev.OpOpendir:
		d.next++
		d.handles[daemonHandle{k.id, d.next}]++
		return raw(&fuse.OpenOut{Fh: d.next}), 0
	case fusedev.OpRelease, fusedev.OpReleasedir:
		h := daemonHandle{k.id, req.U64(0)}
		if d.handles[h] == 0 {
			return bad("%s of handle %#x of node %d", op, h.fh, k.id)
		}
		if d.handles[h]--; d.handles[h] == 0 {
			delete(d.handles, h)
		}
		return nil, 0
	case fusedev.OpFlush, fusedev.OpFsync:
		if !opened(req.U64(0)) {
			return bad("%s by handle %#x of node %d", op, req.U64(0), k.id)
		}
		return nil, 0
	case fusedev.OpRead, fusedev.OpReaddir:
		if !opened(req.U64(0)) {
			return bad("%s by handle %#x of node %d", op, req.U64(0), k.id)
		}
		offset, size := req.Range()
		if op == fusedev.OpRead {
			offset = min(offset, uint64(len(k.content)))
			return append([]byte{}, k.content[offset:min(offset+size, uint64(len(k.content)))]...), 0
		}
		list := fuse.NewDirEntryList(make([]byte, size), offset)
		for _, e := range k.readdirs {
			if e.Off > offset && !list.AddDirEntry(e) {
				break
			}
		}
		return append([]byte{}, list.Bytes()...), 0
	case fusedev.OpWrite:
		if !opened(req.U64(0)) {
			return bad("%s by handle %#x of node %d", op, req.U64(0), k.id)
		}
		offset, size := req.Range()
		copy(k.content[offset:], req.Arg()[40:40+size])
		d.written = req.U64(0)
		return raw(&fuse.WriteOut{Size: uint32(size)}), 0
	case fusedev.OpSetattr:
		return raw(&fuse.AttrOut{Attr: k.attr}), 0
	}
	return nil, unix.ENOSYS
}

// check fails the test for what was asked wrongly.
func (d *daemon) check() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.wrong {
		d.t.Error("the daemon: ", w)
	}
}

// nothingLeft waits until the daemon was given back all that it gave.
func (d *daemon) nothingLeft() {
	d.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		var left []string
		for h, n := range d.handles {
			left = append(left, fmt.Sprintf("handle %#x of node %d, %d times", h.fh, h.node, n))
		}
		for _, id := range slices.Sorted(maps.Keys(d.nodes)) {
			if n := d.nodes[id].lookups; n > 0 && id != RootID {
				left = append(left, fmt.Sprintf("node %d, %d times", id, n))
			}
		}
		d.mu.Unlock()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			d.t.Errorf("never given back: %q", left)
			return
		}
	}
}

// lastWrite is the handle that was written by last.
func (d *daemon) lastWrite() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

// has tells whether a handle is open.
func (d *daemon) has(node, fh uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.handles[daemonHandle{node, fh}] > 0
}

// count is how often something was asked.
func (d *daemon) count(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, a := range d.asked {
		if a == what {
			n++
		}
	}
	return n
}
