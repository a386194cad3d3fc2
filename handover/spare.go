package handover

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A restore opens more files than were open: descriptions that mappings shared
// with a descriptor, with each other, or after a fork with another process,
// CRIU opens for each of them, and executables once more (criu/files-reg.c
// open_filemap, criu/cr-restore.c prepare_mm). Each open file of the kernel's
// has a handle that the daemon is told to release. So spares are opened while
// the daemon can be asked: handles of its own, which are in its images, too.

// modeOf is a file, and how it is open.
type modeOf struct {
	conn, node uint64
	mode       uint32 // O_RDONLY …
}

// wanted says how many handles of files without a descriptor a restore will
// need and there will not be.
func wanted(users []user) map[modeOf]int {
	key := func(u *user, flags uint32) modeOf { return modeOf{u.conn, u.node.ID, flags & unix.O_ACCMODE} }
	want := make(map[modeOf]int)
	known := make(map[uint64]bool) // descriptions, by address
	var mappings []*user
	for i := range users {
		switch u := &users[i]; {
		case u.exe:
			want[key(u, unix.O_RDONLY)]++
		case u.mapped:
			mappings = append(mappings, u)
		case u.open != nil:
			known[u.open.Address] = true
		}
	}
	slices.SortStableFunc(mappings, func(a, b *user) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.start, b.start))
	})
	for i, u := range mappings {
		k := key(u, u.open.Flags)
		if !known[u.open.Address] {
			known[u.open.Address] = true
			want[k]-- // its own handle serves once
		}
		// Neighbours are opened together, if they are alike: those that are
		// private before those that are shared (criu/mem.c
		// premap_priv_vmas, open_vmas).
		if i > 0 {
			before := mappings[i-1]
			if before.pid == u.pid && before.end == u.start && before.shared == u.shared && key(before, before.open.Flags) == k {
				continue
			}
		}
		want[k]++
	}
	return want
}

// openSpares opens what a restore will want. The descriptors are l's, and are
// found by the census that is taken when everyone is stopped.
func (l *looker) openSpares(c *census) error {
	if c.state.Partial {
		return nil // nobody could tell their handles
	}
	for k, n := range wanted(c.users) {
		s := l.systems[k.conn]
		for range n {
			fd, err := s.open(k.node, int(k.mode))
			if err != nil {
				return fmt.Errorf("opening node %d of %s once more, for a mapping to be restored: %w", k.node, s.mount.Point, err)
			}
			l.spares[fd] = true
		}
	}
	return nil
}
