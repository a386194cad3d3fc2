package swap

import (
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

// Usage is everything that [Find] found on one file system: a list per kind
// of kernel object, each object once, however many tasks share it.
type Usage struct {
	Dev          uint64 // st_dev of the file system's superblock
	Mounts       []*Mount
	Processes    []*Process
	Descriptions []*Description
	Tables       []*FDTable
	Contexts     []*FSContext
	Spaces       []*AddressSpace
	Watches      []*Watch
	Obstacles    []Obstacle // what can't be swapped
	Servers      []int      // processes that hold the file system's /dev/fuse
	Hidden       []int      // processes that can't be looked at

	owned *knowledge // holds the namespaces; nil if a plan does
}

// Close lets go of the namespaces.
func (u *Usage) Close() {
	if u.owned != nil {
		u.owned.close()
		u.owned = nil
	}
}

// Mount is one struct mount of the old file system, in one mount namespace.
type Mount struct {
	ID        int // mnt_id of fdinfo and mountinfo: unique on the machine
	Namespace *mounts.Namespace
	Point     string // from the namespace's root
	Root      string // what part of the file system it shows: mountinfo's 4th field
	Info      *mounts.Mount

	// Replacement is a detached clone of the new mount's same part, that
	// will stand at Point. Everything of the processes that was reached
	// through this mount is opened through it. Nil until planned.
	Replacement *os.File
}

// Process is a thread group that uses the file system.
type Process struct {
	PID   int
	Comm  string
	Start uint64 // starttime of /proc/PID/stat, in clock ticks: tells a reused pid
	Tasks []int  // every thread's tid, PID among them
}

// Task names one thread.
type Task struct{ PID, TID int }

// FDRef names a descriptor of a task.
type FDRef struct {
	Task
	FD int
}

// Description is one open file description on the file system.
type Description struct {
	Mount *Mount
	Path  string // from the file system's root, starting with "/"
	Ino   uint64 // i_ino, as fdinfo and maps have it: not always what stat says
	Type  uint32 // S_IFMT of its mode
	Flags int    // O_…, as /proc/PID/fdinfo has them, without O_CLOEXEC
	Pos   int64  // file offset, or position in the directory
	Refs  []FDRef

	Replacement *os.File // nil until planned
	NewPos      int64    // what Pos is in the replacement: another one in a directory
	placed      *placed  // what the replacement has been set to; nil if nobody keeps that

	attr    attributes
	records bool  // the kernel keeps locks of fcntl(2) on it
	lease   *lock // of F_SETLEASE
}

// writes says whether the file can be written to through d.
func (d *Description) writes() bool {
	return d.Type == unix.S_IFREG && d.Flags&unix.O_PATH == 0 && d.Flags&unix.O_ACCMODE != unix.O_RDONLY
}

// FDTable is one files_struct.
type FDTable struct {
	Tasks []Task // who shares it
	FDs   []FD   // those on the file system only

	locks  []heldLock // taken through its descriptors
	epolls []registration

	inotifies []*inotify
}

// FD is one descriptor of a table.
type FD struct {
	Num         int
	CloseOnExec bool
	Description *Description
}

// FSContext is one fs_struct.
type FSContext struct {
	Tasks     []Task
	Cwd, Root *Directory // nil where it is on another file system
}

// Directory is a place that an fs_struct points to.
type Directory struct {
	Mount *Mount
	Path  string // from the file system's root
	Ino   uint64

	Replacement *os.File // O_PATH; nil until planned

	attr attributes
}

// AddressSpace is one mm_struct.
type AddressSpace struct {
	Tasks    []Task
	Mappings []*Mapping  // by rising address
	Exe      *Executable // nil if it is on another file system

	locking locking
}

// Mapping is one VMA backed by a file on the file system.
type Mapping struct {
	Start, End uint64
	Offset     uint64 // of Start in the file, in bytes
	Prot       int    // PROT_…
	Shared     bool
	Dirty      int64 // bytes written to it and, as the kernel has it, not to the file; of a shared one
	MayWrite   bool  // shared and opened for writing: mprotect may make it writable
	Mount      *Mount
	Path       string // from the file system's root
	Ino        uint64

	Replacement *os.File // shared by the mappings of one file; nil until planned

	attr  attributes
	state mappingState
}

// writes says whether the file can be written to through m.
func (m *Mapping) writes() bool { return m.Shared && m.MayWrite }

// attributes is what the kernel believes of a file of the old file system,
// without having asked.
type attributes struct {
	unix.Statx_t
	unlinked  bool // the kernel calls it deleted, and it has no name left
	ambiguous bool // the path ends in " (deleted)": in truth, or by the kernel
}

// Obstacle is something that keeps a swap from being done.
type Obstacle struct {
	PID      int    `json:"pid,omitempty"`
	Process  string `json:"process"`        // "1234 (postgres)", or empty for the mount itself
	Resource string `json:"resource"`       // "fd 7 → /mnt/data/x"
	Reason   string `json:"reason"`         // why it can't be swapped
	Remedy   string `json:"remedy"`         // what the user can do
	Loss     bool   `json:"loss,omitempty"` // it is what would be lost with --from's daemon

	inFlight *inFlight // what can't be looked at without asking
	hung     bool      // it goes away with the requests that hang
	unasked  bool      // the old file system, if it may be asked, may say that it is none
}

func (o Obstacle) String() string {
	s := o.Resource + ": " + o.Reason
	if o.Process != "" {
		s = "process " + o.Process + ": " + s
	}
	if o.Remedy != "" {
		s += "; " + o.Remedy
	}
	return s
}
