// Package fuseinit is what a kernel and a FUSE daemon agree on by FUSE_INIT, as
// a value: to be recorded, written by a user, and given to another kernel in the
// daemon's place.
//
// It owns nothing, and never reads or writes a connection.
package fuseinit
