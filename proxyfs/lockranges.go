package proxyfs

import "golang.org/x/sys/unix"

// lockRange is a locked part of a file, first and last byte.
type lockRange struct {
	start, end uint64
	typ        int16 // F_RDLCK or F_WRLCK
}

// maxEnd as the last byte means up to the end, wherever it will be
// (OFFSET_MAX of include/linux/fs.h).
const maxEnd = 1<<63 - 1

// flock is the range as fcntl(2) takes it.
func (r lockRange) flock() unix.Flock_t {
	fl := unix.Flock_t{Type: r.typ, Whence: unix.SEEK_SET, Start: int64(r.start)}
	if r.end < maxEnd {
		fl.Len = int64(r.end - r.start + 1)
	}
	return fl
}

// overlaps tells whether two ranges have a byte in common.
func (r lockRange) overlaps(o lockRange) bool { return r.start <= o.end && o.start <= r.end }

// setRange returns what one owner's ranges are after r was locked, or unlocked
// if its type is F_UNLCK. They are disjoint before and after.
func setRange(ranges []lockRange, r lockRange) []lockRange {
	after := make([]lockRange, 0, len(ranges)+2)
	for _, old := range ranges {
		if !old.overlaps(r) {
			after = append(after, old)
			continue
		}
		if old.start < r.start {
			after = append(after, lockRange{old.start, r.start - 1, old.typ})
		}
		if old.end > r.end {
			after = append(after, lockRange{r.end + 1, old.end, old.typ})
		}
	}
	if r.typ != unix.F_UNLCK {
		after = append(after, r)
	}
	return merge(after)
}

// merge joins ranges of one type that touch.
func merge(ranges []lockRange) []lockRange {
	for i := 0; i < len(ranges); i++ {
		for j := i + 1; j < len(ranges); j++ {
			a, b := ranges[i], ranges[j]
			if a.typ == b.typ && (a.end < maxEnd && a.end+1 == b.start || b.end < maxEnd && b.end+1 == a.start) {
				ranges[i] = lockRange{min(a.start, b.start), max(a.end, b.end), a.typ}
				ranges = append(ranges[:j], ranges[j+1:]...)
				j = i
			}
		}
	}
	return ranges
}
