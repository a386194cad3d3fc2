package fusestate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// initOut is struct fuse_init_out.
type initOut struct {
	Major, Minor, MaxReadahead, Flags  uint32
	MaxBackground, CongestionThreshold uint16
	MaxWrite, TimeGran                 uint32
	MaxPages, MapAlignment             uint16
	Flags2, MaxStackDepth              uint32
	_                                  [6]uint32
}

// attr is struct fuse_attr.
type attr struct {
	Ino, Size, Blocks, Atime, Mtime, Ctime    uint64
	AtimeNsec, MtimeNsec, CtimeNsec           uint32
	Mode, Nlink, UID, GID, Rdev, Blksize, Flg uint32
}

// served is a node of the server.
type served struct {
	nodeid, generation uint64
	attr               attr
}

// server is a FUSE daemon that says exactly what it is told to.
type server struct {
	dir string // where it is mounted
	fd  int
	dev uint64

	// A WRITE is told to writes, and answered when writeOn is closed.
	writes, writeOn chan struct{}

	mu     sync.Mutex
	nodes  map[string]*served // by name, all in the root, which is ""
	opens  func(name string) (fh uint64, fopen uint32)
	opened map[uint64][]uint64 // file handles by nodeid, in order
}

// serve mounts a server, and answers INIT with reply.
func serve(t *testing.T, options string, reply func(offered uint64) initOut) *server {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("opening /dev/fuse:", err)
	}
	s := &server{dir: t.TempDir(), fd: fd, opened: map[uint64][]uint64{},
		writes: make(chan struct{}, 1), writeOn: make(chan struct{})}
	s.nodes = map[string]*served{"": {1, 0, attr{Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}}}
	s.opens = func(string) (uint64, uint32) { return 0, 0 }
	mount := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0%s", fd, options)
	if err := unix.Mount("fusestate-test", s.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, mount); err != nil {
		t.Fatal("mounting FUSE:", err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil {
			t.Error("unmounting:", err)
		}
		<-ended
		unix.Close(fd)
	})
	first := make(chan error, 1)
	go func() {
		defer close(ended)
		s.answer(reply, first)
	}()
	if err := <-first; err != nil {
		t.Fatal("INIT:", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, s.dir, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		t.Fatal("statx of the mount:", err)
	}
	s.dev = unix.Mkdev(st.Dev_major, st.Dev_minor)
	return s
}

// answer answers every request until the mount is gone.
func (s *server) answer(reply func(uint64) initOut, first chan<- error) {
	buf := make([]byte, 1<<20+4096)
	order := binary.NativeEndian
	for {
		n, err := unix.Read(s.fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return // ENODEV: unmounted
		}
		opcode, unique, nodeid := order.Uint32(buf[4:]), order.Uint64(buf[8:]), order.Uint64(buf[16:])
		arg := buf[40:n]
		var out bytes.Buffer
		errno := unix.Errno(0)
		switch opcode {
		case 26: // INIT
			offered := uint64(order.Uint32(arg[12:]))
			if len(arg) >= 20 {
				offered |= uint64(order.Uint32(arg[16:])) << 32
			}
			binary.Write(&out, order, reply(offered))
		case 1: // LOOKUP
			node := s.named(string(bytes.TrimRight(arg, "\x00")))
			if node == nil || nodeid != 1 {
				errno = unix.ENOENT
				break
			}
			binary.Write(&out, order, struct {
				Nodeid, Generation, EntryValid, AttrValid uint64
				EntryNsec, AttrNsec                       uint32
				Attr                                      attr
			}{node.nodeid, node.generation, 0, 1000, 0, 0, node.attr})
		case 3: // GETATTR
			_, node := s.node(nodeid)
			binary.Write(&out, order, struct {
				Valid uint64
				Nsec  uint32
				_     uint32
				Attr  attr
			}{1000, 0, 0, node.attr})
		case 14, 27: // OPEN, OPENDIR
			name, _ := s.node(nodeid)
			s.mu.Lock()
			fh, fopen := s.opens(name)
			s.opened[nodeid] = append(s.opened[nodeid], fh)
			s.mu.Unlock()
			binary.Write(&out, order, struct {
				FH      uint64
				Fopen   uint32
				Backing int32
			}{fh, fopen, 0})
		case 2, 42, 36: // FORGET, BATCH_FORGET, INTERRUPT: no answer
			continue
		case 15: // READ: zeros
			out.Write(make([]byte, order.Uint32(arg[16:])))
		case 16: // WRITE
			s.writes <- struct{}{}
			<-s.writeOn
			out.Write(append(append([]byte{}, arg[16:20]...), 0, 0, 0, 0))
		case 18, 29, 25: // RELEASE, RELEASEDIR, FLUSH
		default:
			errno = unix.ENOSYS
		}
		if errno != 0 {
			out.Reset()
		}
		header := make([]byte, 16, 16+out.Len())
		order.PutUint32(header, uint32(16+out.Len()))
		order.PutUint32(header[4:], uint32(-int32(errno)))
		order.PutUint64(header[8:], unique)
		_, err = unix.Write(s.fd, append(header, out.Bytes()...))
		if opcode == 26 {
			first <- err
		}
	}
}

func (s *server) named(name string) *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name]
}

// handles are the file handles that were given out for a file, in order.
func (s *server) handles(name string) []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.opened[s.nodes[name].nodeid])
}

func (s *server) node(nodeid uint64) (string, *served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, n := range s.nodes {
		if n.nodeid == nodeid {
			return name, n
		}
	}
	panic(fmt.Sprintf("a request for node %d, which was never handed out", nodeid))
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// device returns the Device of the server's own descriptor.
func (s *server) device(t *testing.T, state *State) *Device {
	t.Helper()
	for i := range state.Devices {
		if d := &state.Devices[i]; d.PID == os.Getpid() && d.FD == s.fd {
			return d
		}
	}
	t.Fatalf("the open /dev/fuse of the test, fd %d, is not among %+v", s.fd, state.Devices)
	return nil
}
