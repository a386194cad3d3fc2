// Package fusedev is one raw FUSE connection: an open /dev/fuse, the mount
// made on it, the requests that come out and the answers and notifications
// that go in. It knows the framing of the protocol (headers, opcodes, which
// operations carry a name) and nothing of what a request means.
//
// A [Conn] owns its descriptor until Close. [Conn.Serve] runs its own
// goroutines; every other method may be called from any goroutine.
//
// It never decides how a request is answered, keeps none after its handler
// has returned, and asks the mounted file system nothing: whoever mounts must
// not wait for itself.
package fusedev
