package fusestate

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kinds of records, as in bpf/fusestate.c.
const (
	fileRecord = iota + 1
	deviceRecord
	mappingRecord
	placeRecord
	busyRecord
	moreRecord
)

var errRecord = errors.New("not understood")

// resume is where the mappings of a task go on that were too many for one
// call of the program, or begin, if they could not be looked at.
type resume struct {
	task Task
	from uint64
	seen uint32 // how many lie below from
	busy bool
}

// parse adds what the programs wrote to s. It returns the tasks that are to be
// looked at again.
func (s *State) parse(b []byte) ([]resume, error) {
	var again []resume
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, fmt.Errorf("%d bytes at the end of the records: %w", len(b), errRecord)
		}
		kind, size := word(b), int(word(b[4:]))
		var ok bool
		switch kind {
		case fileRecord:
			var r programsFileRecord
			if ok = take(&r, b, size); ok {
				if len(s.Files) == cap(s.Files) { // most of what follows is the like
					s.Files = slices.Grow(s.Files, 1+len(b)/size)
				}
				s.Files = append(s.Files, File{
					task(r.Tid, r.Tgid), int(r.Fd), r.CloseOnExec != 0, r.Table,
					node(&r.Node), open(&r.Open),
				})
			}
		case deviceRecord:
			var r programsDeviceRecord
			if ok = take(&r, b, size); ok {
				s.Devices = append(s.Devices, Device{
					task(r.Tid, r.Tgid), int(r.Fd), r.Table, r.File, r.Flags, r.Conn, device(r.Dev),
				})
			}
		case mappingRecord:
			var r programsMappingRecord
			if ok = take(&r, b, size); ok {
				s.Mappings = append(s.Mappings, Mapping{
					task(r.Tid, r.Tgid), r.Mm, r.Start, r.End,
					r.Pgoff * uint64(unix.Getpagesize()), r.Flags, node(&r.Node), open(&r.Open),
				})
			}
		case placeRecord:
			var r programsPlaceRecord
			if ok = take(&r, b, size); ok {
				s.Places = append(s.Places, Place{
					task(r.Tid, r.Tgid), PlaceKind(r.Place), r.Holder, int(r.Mount), r.Name, node(&r.Node),
				})
			}
		case busyRecord, moreRecord:
			var r programsTaskRecord
			if ok = take(&r, b, size); ok {
				again = append(again, resume{task(r.Tid, r.Tgid), r.Next, r.Seen, kind == busyRecord})
			}
		}
		if !ok {
			return nil, fmt.Errorf("a record of kind %d and %d bytes, of %d left: %w", kind, size, len(b), errRecord)
		}
		b = b[size:]
	}
	return again, nil
}

func word(b []byte) uint32 { return *(*uint32)(unsafe.Pointer(&b[0])) }

// take copies the record at the beginning of b, if it is whole and of r's size.
func take[T any](r *T, b []byte, size int) bool {
	if size != int(unsafe.Sizeof(*r)) || size > len(b) {
		return false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(r)), size), b)
	return true
}

func task(tid, tgid int32) Task { return Task{PID: int(tgid), TID: int(tid)} }

// device is st_dev of the kernel's dev_t (include/linux/kdev_t.h).
func device(dev uint32) uint64 { return unix.Mkdev(dev>>20, dev&(1<<20-1)) }

func node(n *programsNode) Node {
	return Node{
		Address: n.Inode, Conn: n.Conn, Dev: device(n.Dev),
		ID: n.Nodeid, Lookups: n.Nlookup, Generation: n.Generation,
		Ino: n.Ino, OrigIno: n.OrigIno, Links: n.Nlink, Mode: n.Mode, Size: n.Size,
		Locked: n.Locked != 0, Unwritten: n.Unwritten != 0,
	}
}

func open(o *programsOpen) Open {
	return Open{
		Address: o.File, Flags: o.Flags, Pos: o.Pos, Mount: int(o.Mount), Name: o.Name,
		HasFH: o.HasFh != 0, FH: o.Fh, FOpen: o.OpenFlags,
	}
}

func conn(c *programsConnValue) Conn {
	return Conn{
		Address: c.Conn, Dev: device(c.Dev),
		Connected: c.Connected != 0, Initialized: c.Initialized != 0,
		Failed: c.ConnError != 0, Mounted: c.Superblock != 0, Waiting: c.Waiting,
		Flags: c.InitFlags, Minor: c.Minor,
		MaxWrite: c.MaxWrite, MaxRead: c.MaxRead, MaxPages: c.MaxPages,
		MaxReadahead:  c.ReadaheadPages * uint64(unix.Getpagesize()),
		MaxBackground: c.MaxBackground, CongestionThreshold: c.CongestionThreshold,
		TimeGran: c.TimeGran, MaxStackDepth: c.MaxStackDepth,
		User: c.UserId, Group: c.GroupId,
		AllowOther: c.AllowOther != 0, DefaultPermissions: c.DefaultPermissions != 0,
		BlockSize: c.Blocksize, Unsupported: c.Unsupported,
	}
}
