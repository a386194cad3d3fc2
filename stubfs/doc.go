// Package stubfs is the gate of an SPFS mount. Open, it forwards every
// request to a directory through a [Target]. Shut, it holds every request, in
// order and for as long as it takes, and lets them go when it is opened
// again: whoever uses the mount waits, and sees no error.
//
// An [FS] owns its connection, its target and all requests it holds, until
// the connection ends. Its methods may be called from any goroutine.
//
// What the gate promises while it is shut:
//
//   - Only FORGET, DESTROY, INIT and INTERRUPT pass. A held request is its
//     bytes, no goroutine and no thread.
//   - Only the death of the process that waits ends a wait. The request of a
//     dying process is answered so that it can die, and is never executed.
//     Signals are not answered: no program sees an EINTR.
//   - What a process gives back when it closes or dies (FLUSH, locks) is
//     answered at once to one that is dying, and still executed in its place
//     when the gate opens, or the directory would keep its locks for ever.
//   - Nothing is cached: pages that the kernel had of the directory are gone,
//     so that a mapping that is touched waits as well.
//
// It never looks into a directory itself and knows no process but through
// /proc.
//
// What it can't do: a process that waits in the kernel for another that waits
// here (for an inode's lock, say) can die only after that one, as on every
// file system. And a request from a process that is not visible in the pid
// namespace of the mount (its thread id is 0) is held even if its process is
// killed, since nothing tells that signal from another: it goes when the gate
// opens or the mount is aborted.
package stubfs
