package handover

import (
	"spfs/internal/bytetext"
	"spfs/internal/fuseinit"
)

// Record is what is remembered of one FUSE connection.
type Record struct {
	ID      uint64   `json:"id"`      // the connection's number at dump: the minor of its st_dev
	Devices []Device `json:"devices"` // the daemon's descriptors of it; at least one
	Init    Init     `json:"init"`
	Options Options  `json:"options"`
	Statfs  Statfs   `json:"statfs"`
	Nodes   []Node   `json:"nodes"` // by ID; the root, RootID, among them
	Handles []Handle `json:"handles,omitempty"`
}

// RootID is the node id of a connection's root (FUSE_ROOT_ID).
const RootID = 1

// Device is one open file description of /dev/fuse in the tree, which a
// placeholder stands for in the images.
type Device struct {
	// Key is what the images call it: CRIU's --inherit-fd fd[N]:Key puts
	// the description N in its place.
	Key    string `json:"key"`
	Flags  int    `json:"flags"`            // F_GETFL
	Cloned bool   `json:"cloned,omitempty"` // by FUSE_DEV_IOC_CLONE; the others of a connection share one queue
	PID    int    `json:"pid"`              // a process that has it, at dump
	FD     int    `json:"fd"`               // and its number there
}

// Init is what kernel and daemon had agreed on by FUSE_INIT.
type Init = fuseinit.Terms

// Options are those of the superblock.
type Options struct {
	Type               string        `json:"type"` // as in mountinfo: "fuse", "fuse.sshfs", "fuseblk"
	Source             bytetext.Text `json:"source"`
	RootMode           uint32        `json:"root_mode"` // its file type
	UserID             uint32        `json:"user_id"`
	GroupID            uint32        `json:"group_id"`
	AllowOther         bool          `json:"allow_other,omitempty"`
	DefaultPermissions bool          `json:"default_permissions,omitempty"`
	MaxRead            uint32        `json:"max_read,omitempty"`
	BlockSize          uint32        `json:"blksize,omitempty"`
	ReadOnly           bool          `json:"read_only,omitempty"`
	Super              bytetext.Text `json:"super"` // all of them, as in mountinfo
}

// Statfs is the answer to statfs(2).
type Statfs struct {
	Blocks  uint64 `json:"blocks"`
	Bfree   uint64 `json:"bfree"`
	Bavail  uint64 `json:"bavail"`
	Files   uint64 `json:"files"`
	Ffree   uint64 `json:"ffree"`
	Bsize   uint32 `json:"bsize"`
	NameLen uint32 `json:"namelen"`
	Frsize  uint32 `json:"frsize"`
}

// Node is an inode that the kernel holds, and the daemon knows by its number.
type Node struct {
	ID         uint64 `json:"id"`
	Generation uint64 `json:"generation,omitempty"`

	// Lookups is how often the daemon has given the node to the kernel, and
	// so how often it may be asked to forget it; 0 if that is not known.
	Lookups uint64 `json:"lookups,omitempty"`

	// Names lead to it: none for the root, and for a file without a name.
	Names   []Name        `json:"names,omitempty"`
	Attr    Attr          `json:"attr"`
	Target  bytetext.Text `json:"target,omitempty"` // of a symbolic link
	Xattrs  []Xattr       `json:"xattrs,omitempty"`
	Entries []Entry       `json:"entries,omitempty"` // of a directory that is open
	Content []Span        `json:"content,omitempty"` // in order

	// Whole tells that Content is all of the file.
	Whole bool `json:"whole,omitempty"`

	// Unlinked tells that nothing leads to it but open files.
	Unlinked bool `json:"unlinked,omitempty"`

	// Was is the last name of an unlinked node, if its directory is a node
	// of the record: what /proc shows of it, with " (deleted)" behind.
	Was *Name `json:"was,omitempty"`
}

// Name is one name of a node.
type Name struct {
	Parent uint64        `json:"parent"` // a node that is a directory
	Name   bytetext.Text `json:"name"`
}

// Attr is struct fuse_attr.
type Attr struct {
	Ino     uint64 `json:"ino"`
	Size    uint64 `json:"size"`
	Blocks  uint64 `json:"blocks"`
	Atime   Time   `json:"atime"`
	Mtime   Time   `json:"mtime"`
	Ctime   Time   `json:"ctime"`
	Mode    uint32 `json:"mode"`
	Nlink   uint32 `json:"nlink"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Rdev    uint32 `json:"rdev,omitempty"` // as the kernel packs it: new_encode_dev
	Blksize uint32 `json:"blksize"`
	Flags   uint32 `json:"flags,omitempty"`
}

// Time is seconds and nanoseconds since 1970.
type Time [2]int64

// Xattr is an extended attribute.
type Xattr struct {
	Name  bytetext.Text `json:"name"`
	Value bytetext.Text `json:"value"`
}

// Entry is one entry of a directory, as the daemon lists it.
type Entry struct {
	Name bytetext.Text `json:"name"`
	Ino  uint64        `json:"ino"`
	Type uint32        `json:"type"` // DT_…
	Off  uint64        `json:"off"`  // the position after it
}

// Span is a part of a file's content.
type Span struct {
	Offset uint64 `json:"offset"`
	Bytes  []byte `json:"bytes"`
}

// Handle is what the daemon gave for one open file description.
type Handle struct {
	Node  uint64 `json:"node"`
	FH    uint64 `json:"fh"`
	Dir   bool   `json:"dir,omitempty"`
	Flags uint32 `json:"flags"` // O_…, as of F_GETFL

	// OpenFlags are FOPEN_DIRECT_IO …, if Known.
	OpenFlags uint32 `json:"open_flags,omitempty"`
	Known     bool   `json:"known,omitempty"`

	// Mapped tells that only mappings use it: the descriptor is closed.
	Mapped bool `json:"mapped,omitempty"`

	// PID and FD are a process that has it, at dump, and its number there,
	// which tells which description of the images it belongs to. Of a handle
	// that is Mapped they are 0.
	PID int `json:"pid,omitempty"`
	FD  int `json:"fd,omitempty"`

	// Marked tells that the images open it through its [Mark], so that a
	// restore gives it to nobody else.
	Marked bool `json:"marked,omitempty"`
}
