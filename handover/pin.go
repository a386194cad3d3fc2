package handover

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// pin keeps the kernel from forgetting a node, and is where its names are
// looked up below.
type pin struct {
	node uint64
	name Name     // one that leads to it
	gone bool     // by which it is not found after the handover
	file *os.File // O_PATH
}

// pinAll opens every node of a record on a mount that a stand-in answers, from
// the root down, each by one lookup. Nothing is opened for the daemon: O_PATH
// sends no OPEN (fs/open.c do_dentry_open).
func pinAll(root *os.File, rec *Record) (pins []pin, err error) {
	defer func() {
		if err != nil {
			for _, p := range pins {
				p.file.Close()
			}
			pins = nil
		}
	}()
	at := map[uint64]*os.File{RootID: root}
	for _, p := range topDown(rec) {
		parent := at[p.name.Parent]
		if p.file, err = openPath(parent, string(p.name.Name)); err != nil {
			if errors.Is(err, unix.EACCES) {
				err = fmt.Errorf("%w: only user %d may use the mount: %w", ErrKernel, rec.Options.UserID, err)
			}
			return pins, fmt.Errorf("finding node %d: %w", p.node, err)
		}
		at[p.node] = p.file
		pins = append(pins, p)
	}
	return pins, nil
}

// topDown lists all nodes but the root, each after the directory of its name.
func topDown(rec *Record) []pin {
	gone := goneNames(rec)
	children := make(map[uint64][]pin)
	for i := range rec.Nodes {
		switch n := &rec.Nodes[i]; {
		case n.ID == RootID:
		case n.Unlinked:
			name := gone[n.ID]
			children[name.Parent] = append(children[name.Parent], pin{node: n.ID, name: name, gone: true})
		default:
			name := n.Names[0]
			children[name.Parent] = append(children[name.Parent], pin{node: n.ID, name: name})
		}
	}
	order := slices.Clone(children[RootID])
	for i := 0; i < len(order); i++ {
		order = append(order, children[order[i].node]...)
	}
	return order
}

func openPath(dir *os.File, name string) (*os.File, error) {
	fd, err := eintr.Get(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("opening %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// lookUp has a name looked up if it has expired.
func lookUp(dir *os.File, name string) error {
	var st unix.Statx_t
	err := eintr.Retry(func() error {
		return unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	})
	if err != nil {
		return fmt.Errorf("looking up %q: %w", name, err)
	}
	return nil
}
