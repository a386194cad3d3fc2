// Package handover gives a live FUSE connection from the kernel's side to
// another daemon process, or to the same one restored elsewhere, and keeps the
// clients from noticing: nothing in them changes.
//
// A tree of processes that has its own FUSE daemons is stopped by [Stop]:
// clients first, daemons last, then all frozen. The [Session] that comes of it
// owns everything that was changed for it: the stopped threads, the copies of
// the daemons' /dev/fuse descriptors and the placeholders in their place, the
// stand-ins that answer what a checkpoint asks of the mounts, the temporary
// cgroup. [Session.Resume] puts all of it back; a session is never left
// otherwise, unless by [Session.Killed], when nobody is left to put it back
// for.
//
// What is remembered of a connection is its [Record]: what the daemon had
// negotiated, the nodes, names and attributes, and the file handles that the
// kernel holds. It comes back from an image directory and is then trusted by
// nobody: [Record.Check] bounds it.
//
// The package knows nothing of CRIU's images. It never answers a request that
// changes something, never lets the kernel hold more of a node than its daemon
// gave, and never asks a daemon anything while one of its threads is stopped.
package handover
