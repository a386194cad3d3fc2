// Package devfuse finds who serves FUSE connections, by their open /dev/fuse,
// and exchanges those descriptors in a stopped process: a placeholder comes in
// their place for as long as somebody else has to answer for the process.
//
// A [Description] is one open /dev/fuse and all descriptors that lead to it; it
// owns a copy of it once it was taken, and its placeholder, until Close. A
// process keeps the number, the flags and the sharing of its descriptors
// throughout.
//
// The package reads no request, and asks no file system anything. It never
// stops a process: whoever calls has done so.
package devfuse
