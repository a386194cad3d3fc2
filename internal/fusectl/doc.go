// Package fusectl asks the kernel about a FUSE connection, and ends one,
// whatever state its daemon is in: how many requests wait, how much has been
// written that the daemon does not have, the end of all requests.
//
// What it reads and writes are files of fusectl and of debugfs. Where those are
// not mounted, it mounts them for itself, detached: nobody sees that. A
// [Connection] owns such a mount until Close, and is one goroutine's.
//
// It sends no request to a daemon, and never waits for one.
package fusectl
