package proxyfs

import (
	"maps"
	"slices"
	"sort"
)

// listing is what a directory handle has read: all entries, in order. It is
// read as a whole, at the first READDIR and at each rewind, so that positions
// mean the same for as long as the handle is open, whatever happens to the
// directory or to what it is backed by. A position is what the file system
// below calls it, unless it has already been given to another name; a name
// keeps the position it was first given.
type listing struct {
	entries []dirent
	rising  bool // cookies do

	index map[uint64]int // from a cookie to its entry; made when asked for

	given map[uint64]string // positions of other file systems, as in Options

	// What this handle gave out before the entries were read again, and
	// what other file systems gave out for this directory.
	names   map[uint64]string // by cookie
	cookies map[string]uint64 // by name: the one to give
	counts  map[uint64]int    // by cookie: how many entries it stood after

	next   int    // the entry that follows
	cookie uint64 // the position that next is at

	reread bool // the directory was exchanged: read it again, where it stands
}

// newListing returns an empty listing in which the given positions are known.
func newListing(positions map[uint64]string) *listing {
	l := &listing{given: positions}
	l.forget()
	return l
}

// forget leaves of what was given out only what other file systems gave out.
// For a program, positions are void once it has rewound (rewinddir(3)).
func (l *listing) forget() {
	l.names, l.cookies, l.counts = nil, nil, nil
	if len(l.given) == 0 {
		return
	}
	l.makeHistory()
	for i, c := range slices.Sorted(maps.Keys(l.given)) {
		if c == 0 {
			continue // the beginning, whatever else it may be said to be
		}
		l.names[c] = l.given[c]
		l.counts[c] = i + 1
		if _, ok := l.cookies[l.given[c]]; !ok {
			l.cookies[l.given[c]] = c
		}
	}
}

func (l *listing) makeHistory() {
	if l.names == nil {
		l.names = make(map[uint64]string)
		l.cookies = make(map[string]uint64)
		l.counts = make(map[uint64]int)
	}
}

// replace makes fresh, as just read, the entries. inPlace keeps those that
// were there before in the order in which they were, so that whoever is in the
// midst of reading misses none and sees none twice; new ones follow.
func (l *listing) replace(fresh []dirent, inPlace bool) {
	if !inPlace {
		l.forget()
	} else if l.entries != nil {
		l.makeHistory()
		for _, e := range l.entries {
			l.names[e.cookie] = e.name
			l.cookies[e.name] = e.cookie
		}
		fresh = inOrderOf(l.entries, fresh)
		l.countLeft(fresh)
	}
	l.entries, l.index = fresh, nil
	l.assignCookies()
}

// inOrderOf returns fresh in the order of old, with what is not in old behind.
func inOrderOf(old, fresh []dirent) []dirent {
	at := make(map[string]int, len(fresh))
	for i, e := range fresh {
		at[e.name] = i
	}
	sorted := make([]dirent, 0, len(fresh))
	for _, e := range old {
		if i, ok := at[e.name]; ok {
			sorted = append(sorted, fresh[i])
			delete(at, e.name)
		}
	}
	for i, e := range fresh {
		if j, isNew := at[e.name]; isNew && j == i {
			sorted = append(sorted, e)
		}
	}
	return sorted
}

// countLeft notes for the present positions how many of the entries before
// them are left: a position after an entry that is gone is where that one was.
func (l *listing) countLeft(fresh []dirent) {
	still := make(map[string]struct{}, len(fresh))
	for _, e := range fresh {
		still[e.name] = struct{}{}
	}
	left := 0
	for _, e := range l.entries {
		if _, ok := still[e.name]; ok {
			left++
		}
		l.counts[e.cookie] = left
	}
}

const (
	madeUp    = 1 << 40   // where cookies begin that no file system gave
	maxCookie = 1<<63 - 1 // of loff_t
)

// assignCookies makes the entries' cookies unique, and those of known names
// what they were.
func (l *listing) assignCookies() {
	defer func() { l.rising = rising(l.entries) }()
	if l.names == nil && rising(l.entries) {
		return // the usual case: they are unique as they are
	}
	taken := make(map[uint64]struct{}, len(l.entries)+1)
	taken[0] = struct{}{}
	next := uint64(madeUp)
	for i := range l.entries {
		e := &l.entries[i]
		if c, ok := l.cookies[e.name]; ok {
			e.cookie = c
		} else if _, mine := l.names[e.cookie]; mine || e.cookie > maxCookie {
			e.cookie = 0 // somebody else's, or not a position for lseek(2)
		}
		if _, is := taken[e.cookie]; is {
			for ; ; next++ {
				_, known := l.names[next]
				if _, is := taken[next]; !is && !known {
					break
				}
			}
			e.cookie = next
		}
		taken[e.cookie] = struct{}{}
	}
}

// rising tells whether each cookie is larger than the one before.
func rising(entries []dirent) bool {
	last := uint64(0)
	for i := range entries {
		if c := entries[i].cookie; c <= last || c > maxCookie {
			return false
		}
		last = entries[i].cookie
	}
	return true
}

// seek moves to a position. One that was never given out counts as the place
// it would have where positions rise, and else as a number of entries.
func (l *listing) seek(cookie uint64) {
	if cookie == l.cookie {
		return
	}
	l.cookie = cookie
	l.next = l.find(cookie)
}

func (l *listing) find(cookie uint64) int {
	if cookie == 0 {
		return 0
	}
	if l.index == nil {
		l.index = make(map[uint64]int, len(l.entries))
		for i, e := range l.entries {
			l.index[e.cookie] = i
		}
		for c, name := range l.names { // a name with several positions
			if i, ok := l.index[l.cookies[name]]; ok && l.entries[i].name == name {
				if _, taken := l.index[c]; !taken {
					l.index[c] = i
				}
			}
		}
	}
	if i, ok := l.index[cookie]; ok {
		return i + 1
	}
	if n, ok := l.counts[cookie]; ok {
		return min(n, len(l.entries))
	}
	if l.rising {
		return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].cookie > cookie })
	}
	return int(min(cookie, uint64(len(l.entries))))
}
