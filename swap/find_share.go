package swap

import (
	"slices"

	"golang.org/x/sys/unix"
)

// What kcmp(2) compares (include/uapi/linux/kcmp.h).
const (
	kcmpFile  = 0
	kcmpVM    = 1
	kcmpFiles = 2
	kcmpFS    = 3
)

// kcmp compares a kernel object of two tasks. The order that it gives is
// meaningless but the same until the next boot, so that sorting finds what is
// equal in n·log n calls.
func kcmp(a, b, what, fdA, fdB int) (order int, err error) {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(what), uintptr(fdA), uintptr(fdB), 0)
	if errno != 0 {
		return 0, errno
	}
	switch r {
	case 0:
		return 0, nil
	case 1:
		return -1, nil
	}
	return 1, nil // greater; or (3) unequal without an order, which no x86 or ARM kernel says
}

// same says whether two tasks share the object. Those that can't be compared
// (one is gone) share nothing.
func same(a, b, what int) bool {
	order, err := kcmp(a, b, what, 0, 0)
	return err == nil && order == 0
}

// classes sorts items by order and returns the runs of equal ones. An error of
// order makes two items unequal. Items that are in order already cost one
// comparison each.
func classes[T any](items []T, order func(a, b T) (int, error)) [][]T {
	if len(items) == 0 {
		return nil
	}
	equal, sorted := compareNeighbours(items, order, true)
	if !sorted {
		slices.SortFunc(items, func(a, b T) int {
			o, err := order(a, b)
			if err != nil {
				return -1
			}
			return o
		})
		equal, _ = compareNeighbours(items, order, false)
	}
	var runs [][]T
	start := 0
	for i := 1; i <= len(items); i++ {
		if i < len(items) && equal[i] {
			continue
		}
		runs = append(runs, items[start:i])
		start = i
	}
	return runs
}

// compareNeighbours says of each item whether it equals the one before, and
// whether they are in order: if they must be, it ends at the first that isn't.
func compareNeighbours[T any](items []T, order func(a, b T) (int, error), must bool) (equal []bool, sorted bool) {
	equal = make([]bool, len(items))
	sorted = true
	for i := 1; i < len(items); i++ {
		o, err := order(items[i-1], items[i])
		equal[i] = err == nil && o == 0
		if err == nil && o > 0 {
			if sorted = false; must {
				break
			}
		}
	}
	return equal, sorted
}

// ranks is the order in which classes left items, to begin with the next time:
// the order that kcmp gives is the same until the next boot, and few items are
// new.
type ranks[K comparable] map[K]int

// apply sorts items as they were, new ones last.
func apply[K comparable, T any](r ranks[K], items []T, key func(T) K) {
	if len(r) == 0 {
		return
	}
	rank := func(item T) int {
		if n, ok := r[key(item)]; ok {
			return n
		}
		return len(r)
	}
	slices.SortStableFunc(items, func(a, b T) int { return rank(a) - rank(b) })
}
