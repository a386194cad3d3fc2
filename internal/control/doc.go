// Package control is how commands talk to a running "spfs mount": a unix
// socket per mount, one line of JSON a request, one a reply.
//
// The socket is /run/spfs/MAJOR:MINOR.sock, named by the st_dev of the mount,
// so that it is found from /proc/self/mountinfo, from any mount namespace
// that shows /run, without a question to the file system, which may be
// holding everyone who asks. [MountDevice] does that.
//
// A [Listener] owns its socket and the file of it until Close; a [Client] its
// connection. The listener answers processes of its own user only
// (SO_PEERCRED), and bounds what it reads. A directory travels as an open
// descriptor, so the two sides need not agree on names.
//
// It never touches a mounted file system, and decides nothing: a [Handler]
// does.
package control
