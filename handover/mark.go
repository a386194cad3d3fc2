package handover

import (
	"strconv"
	"strings"
)

// Mark is a name that a stand-in for a restore knows in every directory: a
// directory that exists for nothing but to be left again. Who opens
//
//	DIR/Mark(i)/../FILE
//
// gets the record's handle i for the file, and no other, while the path and
// the names that the kernel remembers are those of DIR/FILE. That is how each
// description gets the very handle that it had: of an OPEN the kernel tells
// the thread, the node and the flags, and several descriptions may have those
// in common. A handle that is opened so is Handle.Marked.
func Mark(i int) string { return markPrefix + strconv.Itoa(i) }

const markPrefix = ".spfs-handle-"

// unmark is the number of a Mark.
func unmark(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, markPrefix)
	if !ok {
		return 0, false
	}
	i, err := strconv.Atoi(digits)
	return i, err == nil && i >= 0 && Mark(i) == name
}
