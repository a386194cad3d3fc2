package handover

import (
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
)

func TestWanted(t *testing.T) {
	node := func(id uint64) *fusestate.Node { return &fusestate.Node{ID: id} }
	desc := func(address uint64, flags uint32) *fusestate.Open {
		return &fusestate.Open{Address: address, Flags: flags, HasFH: true}
	}
	mapping := func(pid int, id, address uint64, flags uint32, start, end uint64, shared bool) user {
		return user{pid: pid, conn: 3, node: node(id), open: desc(address, flags), mapped: true, start: start, end: end, shared: shared}
	}
	users := []user{
		// A descriptor of 7, and a mapping of the same description.
		{pid: 1, conn: 3, node: node(7), open: desc(0x70, unix.O_RDWR|unix.O_APPEND)},
		mapping(1, 7, 0x70, unix.O_RDWR|unix.O_APPEND, 0x5000, 0x6000, true),
		// A library: two neighbours, of a description of their own, and the
		// same in a child; in the parent one piece is elsewhere.
		mapping(1, 8, 0x80, unix.O_RDONLY, 0x2000, 0x3000, false),
		mapping(1, 8, 0x80, unix.O_RDONLY, 0x1000, 0x2000, false),
		mapping(1, 8, 0x80, unix.O_RDONLY, 0x9000, 0xa000, false),
		mapping(2, 8, 0x80, unix.O_RDONLY, 0x1000, 0x2000, false),
		mapping(2, 8, 0x80, unix.O_RDONLY, 0x2000, 0x3000, false),
		// Neighbours, one private and one shared, and run besides.
		mapping(2, 9, 0x90, unix.O_RDONLY, 0x3000, 0x4000, false),
		mapping(2, 9, 0x90, unix.O_RDONLY, 0x4000, 0x5000, true),
		{pid: 2, conn: 3, node: node(9), exe: true},
		// A mapping that has its file for itself.
		mapping(2, 10, 0xa0, unix.O_RDONLY, 0x7000, 0x8000, false),
	}
	want := map[modeOf]int{
		{3, 7, unix.O_RDWR}:    1,
		{3, 8, unix.O_RDONLY}:  2,
		{3, 9, unix.O_RDONLY}:  2,
		{3, 10, unix.O_RDONLY}: 0,
	}
	if got := wanted(users); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
