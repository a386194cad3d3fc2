package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/devfuse"
	"spfs/internal/fusestate"
	"spfs/internal/proctree"
)

// Why a tree is refused before anything of it is stopped, besides
// [ErrNoDaemon].
var (
	ErrOwnMount = errors.New("a FUSE daemon uses its own mount")
	ErrCircle   = errors.New("FUSE daemons use each other's mounts in a circle")
	ErrOutside  = errors.New("a process outside the tree uses its FUSE mount")
	ErrDirect   = errors.New("a file is open that the kernel reads past its FUSE daemon (FOPEN_PASSTHROUGH), by an arrangement that only that daemon can make")
)

// census is who is in a tree, and what of FUSE they have, at one moment.
type census struct {
	pids    []int // the root first
	state   *fusestate.State
	devices []*devfuse.Description
	served  map[uint64][]int // by connection number: who holds its device
	users   []user           // of those connections, in the tree
	ours    []user           // what this process holds of them
}

// user is one thing in the tree that uses a file of a connection.
type user struct {
	pid  int
	conn uint64 // its number
	what string // "descriptor 3", for messages
	link string // leads to the file, and asks nobody
	node *fusestate.Node
	open *fusestate.Open // nil for a place: a directory, an executable

	mount int // mnt_id
	fd    int
	exe   bool // it is run

	mapped     bool
	start, end uint64 // of a mapping
	shared     bool
}

// takeCensus looks at the tree and at everyone who uses its connections.
func takeCensus(ctx context.Context, root int) (*census, error) {
	c := &census{served: make(map[uint64][]int)}
	var err error
	if c.pids, err = living(root); err != nil {
		return nil, err
	}
	if c.devices, err = devfuse.Find(c.pids); err != nil {
		return nil, err
	}
	for _, d := range c.devices {
		for _, h := range d.Holders {
			if !slices.Contains(c.served[d.Connection], h.PID) {
				c.served[d.Connection] = append(c.served[d.Connection], h.PID)
			}
		}
	}
	if len(c.served) == 0 {
		return nil, fmt.Errorf("the tree of %s: %w", describe(root), ErrNoDaemon)
	}
	reader, err := fusestate.Shared()
	if err == nil {
		c.state, err = reader.Read(fusestate.All)
	}
	if errors.Is(err, fusestate.ErrNoBPF) {
		c.state, err = fusestate.FromProc(ctx, fusestate.All)
	}
	if err != nil {
		return nil, err
	}
	return c, c.findUsers()
}

// living are the processes of a tree, the root first, without those that have
// ended. None may be this one.
func living(root int) ([]int, error) {
	all, err := proctree.Of(root)
	if err != nil {
		return nil, err
	}
	var pids []int
	for i, pid := range all {
		if pid == os.Getpid() {
			return nil, fmt.Errorf("%s: spfs itself is part of the tree, so it cannot stop it; run it from outside", describe(root))
		}
		if i == 0 || !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// findUsers sorts who uses the tree's connections.
func (c *census) findUsers() error {
	in := make(map[int]bool, len(c.pids))
	for _, pid := range c.pids {
		in[pid] = true
	}
	var outside error
	add := func(u user) {
		u.conn = uint64(unix.Minor(u.node.Dev))
		switch {
		case unix.Major(u.node.Dev) != 0 || c.served[u.conn] == nil:
		case in[u.pid]:
			c.users = append(c.users, u)
		case u.pid == os.Getpid():
			c.ours = append(c.ours, u)
		case outside == nil:
			outside = fmt.Errorf("%w: %s has %s on connection %d, which %s serves; end that first",
				ErrOutside, describe(u.pid), u.what, u.conn, describe(c.served[u.conn][0]))
		}
	}
	s := c.state
	for i := range s.Files {
		f := &s.Files[i]
		add(user{pid: f.PID, what: fmt.Sprintf("descriptor %d", f.FD), node: &f.Node, open: &f.Open, mount: f.Open.Mount, fd: f.FD,
			link: fmt.Sprintf("/proc/%d/task/%d/fd/%d", f.PID, f.TID, f.FD)})
	}
	for i := range s.Mappings {
		m := &s.Mappings[i]
		add(user{pid: m.PID, what: fmt.Sprintf("a mapping at %#x", m.Start), node: &m.Node, open: &m.Open, mount: m.Open.Mount, mapped: true,
			start: m.Start, end: m.End, shared: m.VMFlags&vmShared != 0,
			link: fmt.Sprintf("/proc/%d/map_files/%x-%x", m.PID, m.Start, m.End)})
	}
	for i := range s.Places {
		p := &s.Places[i]
		add(user{pid: p.PID, what: "its " + p.Kind.String(), node: &p.Node, mount: p.Mount, exe: p.Kind == fusestate.Exe,
			link: fmt.Sprintf("/proc/%d/task/%d/%s", p.PID, p.TID, p.Kind)})
	}
	if outside != nil {
		return outside
	}
	for _, u := range c.users {
		// Every open of such an inode must name the same arrangement
		// (fs/fuse/iomode.c, fuse_file_io_open), by a number that the kernel
		// tells nobody, and that no other connection has.
		if u.open != nil && u.open.FOpen&openPassthrough != 0 {
			return fmt.Errorf("%w: %s, %s; run %s without passthrough", ErrDirect, describe(u.pid), u.what, describe(c.served[u.conn][0]))
		}
	}
	return c.findBacked()
}

// vmShared is VM_SHARED of include/linux/mm.h.
const vmShared = 0x8

// openPassthrough is FOPEN_PASSTHROUGH of include/uapi/linux/fuse.h.
const openPassthrough = 1 << 7

// daemon says whether a process holds a connection's device.
func (c *census) daemon(pid int) bool {
	for _, pids := range c.served {
		if slices.Contains(pids, pid) {
			return true
		}
	}
	return false
}

// clients are the processes that use a connection and serve none.
func (c *census) clients() []int {
	var pids []int
	for _, u := range c.users {
		if !c.daemon(u.pid) && !slices.Contains(pids, u.pid) {
			pids = append(pids, u.pid)
		}
	}
	return pids
}
