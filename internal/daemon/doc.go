// Package daemon is a running "spfs mount": it puts a connection, the gate, a
// forwarder and a control socket together, and takes them apart again.
//
// [Run] owns all of these from the moment the mount is made until the
// connection has ended. It ends by itself when the last mount of the
// connection is gone, whoever unmounted it, and takes the mount away itself
// when it is told to end; it leaves no socket, and no mount that nobody
// serves. [Start] does the same in a process of its own.
package daemon
