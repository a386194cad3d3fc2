// Package jump is for the tests of package ptrace: it goes to a place in memory
// with all registers set, as a tracer makes a thread do, and tells with which
// registers the code there ended. A test can have no assembly of its own.
package jump

// To loads the registers from in, jumps to pc, and returns when [Landing] is jumped
// to; out then has the registers as they were there. The stack is in's, and has to
// have some room.
//
// No signal may come meanwhile: Go's handlers would not find their goroutine. And
// there is room for one caller at a time.
func To(in *Registers, pc uintptr, out *Registers)

// Landing returns the address that the code has to jump to at its end.
func Landing() uintptr

// kept is what To needs to return.
//
//lint:ignore U1000 the assembly uses it
var kept [5]uintptr
