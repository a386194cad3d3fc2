package fusestate

import "golang.org/x/sys/unix"

// Parts says what to look for.
type Parts uint

// The parts of a State.
const (
	Files    Parts = 1 << iota // open files and open /dev/fuse, with their connections
	Mappings                   // mappings
	Places                     // working and root directories, executables

	// NotOwn leaves out the Files of this process.
	NotOwn

	// MappingsOf is Mappings, but of the processes named only: walking those
	// of all takes as long as they are many.
	MappingsOf

	All = Files | Mappings | Places
)

// State is what uses FUSE on the machine.
type State struct {
	Files    []File
	Devices  []Device
	Mappings []Mapping
	Places   []Place
	Conns    []Conn // those of all of the above, in no order

	// Others is, of the processes that were asked for, what else they have
	// open that may have to do with files on FUSE: sockets, epolls, io_urings
	// and the like.
	Others map[int]Others

	// Busy are processes whose mappings are not all in Mappings, since a task
	// of each kept changing them, or holds their lock while it waits.
	Busy []int

	// Partial says that the State came from /proc, which knows no nodes,
	// handles and connections: of a Node only Dev, Ino are known, of Open
	// only Flags, Pos and Mount. Nothing is known of Conns but Dev.
	Partial bool
}

// Conn returns the connection of that address, or nil.
func (s *State) Conn(address uint64) *Conn {
	for i := range s.Conns {
		if s.Conns[i].Address == address {
			return &s.Conns[i]
		}
	}
	return nil
}

// ConnOf returns the connection that serves the file system of that st_dev,
// or nil. (That of a submount is known by its files.)
func (s *State) ConnOf(dev uint64) *Conn {
	for i := range s.Conns {
		if s.Conns[i].Dev == dev {
			return &s.Conns[i]
		}
	}
	return nil
}

// Others stands for the open files of a process that are no files. It is
// another one if any is opened, closed, or gets another number.
type Others struct{ Count, Mix uint64 }

// Task is the thread that something was found with. What threads share is
// found once, with the leader if it has it.
type Task struct {
	PID int // of the process
	TID int // of the thread
}

// Node is an inode of a FUSE file system.
type Node struct {
	Address uint64 // of the struct inode
	Conn    uint64 // address of its connection
	Dev     uint64 // st_dev of its superblock

	ID         uint64 // the nodeid
	Lookups    uint64 // how many the daemon will be told to forget
	Generation uint32
	Ino        uint64 // as fdinfo and maps have it
	OrigIno    uint64 // as the daemon and stat have it
	Links      uint32 // 0: unlinked
	Mode       uint32 // type and permissions, as last heard
	Size       int64  // as last heard, or as written since
	Locked     bool   // it has locks or leases that the kernel knows of
	Unwritten  bool   // pages of it have not been written to the daemon
}

// IsDir says whether the node is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// Open is an open file description.
type Open struct {
	Address uint64 // of the struct file: descriptors with the same share it
	Flags   uint32 // O_…
	Pos     int64
	Mount   int    // mnt_id of the mount that it was opened through
	Name    uint64 // stands for the path on the file system; 0 if that is not known

	// HasFH says that the daemon opened it, which it does not for O_PATH,
	// FIFOs and the like. If it answers OPEN with ENOSYS, FH is 0.
	HasFH bool
	FH    uint64 // the daemon's file handle
	FOpen uint32 // FOPEN_…: how the daemon opened it
}

// File is a descriptor of an open file on FUSE.
type File struct {
	Task
	FD          int
	CloseOnExec bool
	Table       uint64 // address of the descriptor table: tasks with the same share it
	Node
	Open
}

// Device is a descriptor of an open /dev/fuse.
type Device struct {
	Task
	FD    int
	Table uint64
	File  uint64 // address of the struct file
	Flags uint32 // O_…

	Conn uint64 // address of its connection, 0 before the mount
	Dev  uint64 // st_dev of what it serves, 0 before the mount
}

// Number is the connection's number in /sys/fs/fuse/connections.
func (d *Device) Number() uint32 { return unix.Minor(d.Dev) }

// Mapping is a mapping of a file on FUSE.
type Mapping struct {
	Task
	Space      uint64 // address of the mm_struct: tasks with the same share it
	Start, End uint64
	Offset     uint64 // in the file, in bytes
	VMFlags    uint64 // VM_… of include/linux/mm.h
	Node
	Open // the description that it was made from
}

// PlaceKind is what a task has a Place for.
type PlaceKind uint32

// The kinds of places.
const (
	Cwd PlaceKind = iota
	Root
	Exe
)

func (k PlaceKind) String() string {
	switch k {
	case Cwd:
		return "cwd"
	case Root:
		return "root"
	case Exe:
		return "exe"
	}
	return "unknown place"
}

// Place is a working directory, root directory or executable on FUSE.
type Place struct {
	Task
	Kind   PlaceKind
	Holder uint64 // address of the fs_struct (mm_struct for Exe)
	Mount  int    // mnt_id
	Name   uint64 // as of an Open
	Node
}

// Conn is a connection and what it negotiated.
type Conn struct {
	Address uint64 // of the struct fuse_conn
	Dev     uint64 // st_dev of its file system; the minor is its number

	Connected   bool // no: aborted, or the daemon is gone
	Initialized bool // INIT was answered
	Failed      bool // INIT was answered with nonsense
	Mounted     bool // it has a superblock; if not, Readahead, TimeGran and BlockSize are 0
	Waiting     uint64

	// What the daemon answered to INIT, as far as it has an effect, and after
	// the kernel's limits. Flags are its FUSE_… (include/uapi/linux/fuse.h).
	// Not kept by the kernel, and so never set: FUSE_FILE_OPS,
	// FUSE_SPLICE_…, FUSE_HAS_IOCTL_DIR, FUSE_NO_OPEN_SUPPORT,
	// FUSE_NO_OPENDIR_SUPPORT, FUSE_MAP_ALIGNMENT, FUSE_INIT_EXT,
	// FUSE_HAS_EXPIRE_ONLY, FUSE_NO_EXPORT_SUPPORT, FUSE_HAS_RESEND,
	// FUSE_REQUEST_TIMEOUT. FUSE_MAX_PAGES is always set, since MaxPages is known.
	Flags               uint64
	Minor               uint32
	MaxWrite, MaxRead   uint32
	MaxPages            uint32
	MaxReadahead        uint64 // bytes, of the superblock's bdi
	MaxBackground       uint32
	CongestionThreshold uint32
	TimeGran            uint32
	MaxStackDepth       uint32

	// Options of the mount.
	User, Group        uint32 // user_id, group_id, in the initial user namespace
	AllowOther         bool
	DefaultPermissions bool // also set by FUSE_POSIX_ACL
	BlockSize          uint64

	// Unsupported has the bit 1<<OPCODE of each operation that the daemon
	// answered with ENOSYS, so that the kernel asks no more.
	Unsupported uint64
}

// Number is the connection's number in /sys/fs/fuse/connections.
func (c *Conn) Number() uint32 { return unix.Minor(c.Dev) }
