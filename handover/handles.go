package handover

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// handles are the file handles that a stand-in has to give: those of the
// record, each to one open file at a time, and made-up ones without end.
//
// A recorded handle that comes back by a RELEASE can be given again: the
// daemon was not told, and has it open still.
type handles struct {
	recorded []Handle
	usable   []bool // may be given at all
	taken    []bool
	byNode   map[uint64][]int  // indices into recorded
	madeUp   map[uint64]uint64 // node by number
	next     uint64            // offset from FirstMadeUp of the next one to make up
}

// newHandles makes a pool of the recorded handles that use tells of; the
// others are never given.
func newHandles(recorded []Handle, use func(*Handle) bool) *handles {
	h := &handles{
		recorded: recorded,
		usable:   make([]bool, len(recorded)),
		taken:    make([]bool, len(recorded)),
		byNode:   make(map[uint64][]int),
		madeUp:   make(map[uint64]uint64),
	}
	for i := range recorded {
		if r := &recorded[i]; use(r) {
			h.usable[i] = true
			h.byNode[r.Node] = append(h.byNode[r.Node], i)
		}
	}
	return h
}

// unsaid are the flags of open(2) that FUSE_OPEN does not tell or that do not
// stay in f_flags (fs/fuse/file.c fuse_send_open, fs/open.c do_dentry_open),
// and those that say nothing to a daemon.
const unsaid = uint32(unix.O_CREAT | unix.O_EXCL | unix.O_NOCTTY | unix.O_TRUNC | unix.O_CLOEXEC |
	unix.O_NOFOLLOW | unix.O_DIRECTORY | oLargefile | fmodeExec)

const (
	oLargefile = 0o100000 // O_LARGEFILE of the kernel: libc has 0 for it
	fmodeExec  = 0x20     // __FMODE_EXEC, of an execve
)

// take finds a recorded handle of the node for an open of which nothing but
// the flags is known, or returns -1.
//
// The same flags are wanted: CRIU opens each description with those it had.
// The files of mappings it opens with their access mode only (proc_parse.c
// vma_get_mapfile_flags), so such an open may have any handle of that mode
// that is there for mappings.
func (h *handles) take(node uint64, flags uint32) int {
	best, plain := -1, flags&^unsaid&^unix.O_ACCMODE == 0
	for _, i := range h.byNode[node] {
		r := &h.recorded[i]
		if h.taken[i] || r.Marked || (r.Flags^flags)&unix.O_ACCMODE != 0 {
			continue
		}
		exact := (r.Flags^flags)&^unsaid == 0
		switch {
		case exact && r.Mapped == plain:
			return i
		case r.Mapped && plain && (best < 0 || !h.recorded[best].Mapped),
			exact && best < 0:
			best = i
		}
	}
	return best
}

// fits says why handle i can't be given to an open that asks for it, if so.
func (h *handles) fits(i int, node uint64, flags uint32) error {
	if i >= len(h.recorded) {
		return fmt.Errorf("no handle %d was recorded", i)
	}
	r := &h.recorded[i]
	switch {
	case r.Node != node:
		return fmt.Errorf("handle %d is one of node %d, not of node %d", i, r.Node, node)
	case (r.Flags^flags)&unix.O_ACCMODE != 0:
		return fmt.Errorf("handle %d was opened with flags %#o, not %#o", i, r.Flags, flags)
	case h.taken[i], !h.usable[i]:
		return fmt.Errorf("handle %d is open already", i)
	}
	return nil
}

// give marks a recorded handle as given, and returns its number.
func (h *handles) give(i int) uint64 {
	h.taken[i] = true
	return h.recorded[i].FH
}

// makeUp returns a number that no daemon ever gave.
func (h *handles) makeUp(node uint64) uint64 {
	for {
		fh := FirstMadeUp + h.next%(1<<32)
		h.next++
		if _, used := h.madeUp[fh]; !used {
			h.madeUp[fh] = node
			return fh
		}
	}
}

// release takes a number back, and tells whether it was one that was given.
// Daemons may use one number many times: which of those it is, says the node,
// and then the flags.
func (h *handles) release(node, fh uint64, flags uint32) bool {
	if n, ok := h.madeUp[fh]; ok && n == node {
		delete(h.madeUp, fh)
		return true
	}
	best := -1
	for _, i := range h.byNode[node] {
		if r := &h.recorded[i]; h.taken[i] && r.FH == fh && (best < 0 || (r.Flags^flags)&^unsaid == 0) {
			best = i
		}
	}
	if best < 0 {
		return false
	}
	h.taken[best] = false
	return true
}

// left are the recorded handles that could be given and that nobody has.
func (h *handles) left() []int {
	var left []int
	for i, usable := range h.usable {
		if usable && !h.taken[i] {
			left = append(left, i)
		}
	}
	return left
}
