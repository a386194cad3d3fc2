// Package fdpass hands open file descriptions to a process that runs a batch
// of system calls ([ptrace.Program]), whatever namespaces, credentials and
// limits it has: through a socket pair made in the process itself, whose other
// end is taken with pidfd_getfd(2).
//
// A [Channel] is part of a program while that is written, and the tracer's end
// of the socket pair while it runs. It owns that end until [Channel.Close] and
// no description that it sends. It never decides what becomes of them in the
// process.
package fdpass
