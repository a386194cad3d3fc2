package proxyfs

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say how a directory is shown. The zero value is useful.
type Options struct {
	// EntryTimeout and AttrTimeout are how long the kernel may believe a
	// name or attributes without asking. 0: never, so that a change made
	// behind the mount is seen at once.
	EntryTimeout, AttrTimeout time.Duration

	// MaxDescriptors bounds the descriptors kept for files that nobody has
	// open. 0: half of RLIMIT_NOFILE.
	MaxDescriptors int

	// Positions are directory positions that another file system gave out;
	// see [FS.SetPositions].
	Positions map[string]map[uint64]string
}

// FS is a directory seen through FUSE. It implements [fuse.RawFileSystem];
// all its methods may be called concurrently, Retarget and Close excepted.
type FS struct {
	fuse.RawFileSystem // what is not implemented answers ENOSYS

	opts  Options
	caps  capabilities // the daemon's own
	limit int          // descriptors of nodes

	mu        sync.Mutex // guards what follows, and the fields of node said so
	root      *node
	rootRead  int    // the root, open for reading: open_by_handle_at wants it
	epoch     uint64 // counts Retargets
	nodes     map[uint64]*node
	byFile    map[fileID]*node
	lastNode  uint64
	open      int // descriptors held by nodes
	positions map[string]map[uint64]string
	lost      []LostLock
	parked    []*os.File // of Deleted, to be closed

	handlesMu  sync.RWMutex
	handles    map[uint64]*handle
	lastHandle atomic.Uint64
}

// New shows dir, an open directory (O_PATH will do), which stays the
// caller's. It sets the process's umask to 0: a FUSE request says what its
// caller's is.
func New(dir *os.File, opts Options) (*FS, error) {
	caps, err := currentCapabilities()
	if err != nil {
		return nil, err
	}
	if err := checkProc(); err != nil {
		return nil, err
	}
	limit, err := raiseDescriptorLimit()
	if err != nil {
		return nil, err
	}
	if opts.MaxDescriptors > 0 {
		limit = opts.MaxDescriptors
	}
	unix.Umask(0)
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts,
		caps:          caps,
		limit:         limit,
		rootRead:      -1,
		nodes:         make(map[uint64]*node),
		byFile:        make(map[fileID]*node),
		lastNode:      fuse.FUSE_ROOT_ID,
		positions:     opts.Positions,
		handles:       make(map[uint64]*handle),
	}
	f.root = &node{id: fuse.FUSE_ROOT_ID, fd: -1, typ: unix.S_IFDIR}
	f.nodes[f.root.id] = f.root
	if err := f.setRoot(dir); err != nil {
		return nil, err
	}
	return f, nil
}

// setRoot opens dir as the root of what is shown, in place of the present one.
func (f *FS) setRoot(dir *os.File) error {
	fd, err := openat(int(dir.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir.Name(), err)
	}
	read, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("open %s for reading: %w", dir.Name(), err)
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		unix.Close(fd)
		unix.Close(read)
		return fmt.Errorf("stat %s: %w", dir.Name(), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, oldRead := f.root.fd, f.rootRead
	if old >= 0 {
		f.forgetFileLocked(f.root)
	}
	f.root.fd, f.root.file, f.rootRead = fd, fileIDOf(&st), read
	f.byFile[f.root.file] = f.root
	if old >= 0 {
		unix.Close(old)
		unix.Close(oldRead)
	}
	return nil
}

// Close closes every descriptor. No request may be in flight, nor come.
func (f *FS) Close() error {
	f.handlesMu.Lock()
	handles := f.handles
	f.handles = make(map[uint64]*handle)
	f.handlesMu.Unlock()
	var fds []int
	for _, h := range handles {
		if fd := h.fd.Swap(-1); fd >= 0 {
			fds = append(fds, int(fd))
		}
	}
	f.mu.Lock()
	for _, n := range f.nodes {
		if n.fd >= 0 {
			fds = append(fds, n.fd)
			n.fd = -1
		}
		fds = append(fds, n.locks.closeAll()...)
	}
	fds = append(fds, f.rootRead)
	f.rootRead, f.open = -1, 0
	f.nodes, f.byFile = map[uint64]*node{}, map[fileID]*node{}
	f.mu.Unlock()
	f.unpark()
	return closeAll(fds)
}

// Nodes returns the nodes that the kernel knows now, the root among them.
func (f *FS) Nodes() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]uint64, 0, len(f.nodes))
	for id, n := range f.nodes {
		if n.lookups > 0 || n == f.root {
			ids = append(ids, id)
		}
	}
	return ids
}

// Path returns the best known path of a node inside the directory, for
// messages: "" is the root; a node without a name is "(node 7)".
func (f *FS) Path(nodeid uint64) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[nodeid]
	if n == nil {
		return unnamed(nodeid)
	}
	path, ok := f.pathLocked(n)
	if !ok {
		return unnamed(nodeid)
	}
	return path
}

func unnamed(nodeid uint64) string { return fmt.Sprintf("(node %d)", nodeid) }

// SetPositions makes directory positions known that another file system gave
// out: for a directory's path ("" is the root) each position with the name of
// the entry it stands after. A process that has such a position goes on after
// that entry, and the entry is listed with that position. It holds for
// directories opened from then on.
func (f *FS) SetPositions(positions map[string]map[uint64]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.positions = positions
}

func (f *FS) String() string { return "spfs" }

// SetDebug does nothing: go-fuse prints the requests itself.
func (f *FS) SetDebug(bool) {}
