// Package fuseinit is what a kernel and a FUSE daemon agree on by FUSE_INIT, as
// a value: to be recorded, written by a user, and given to another kernel in the
// daemon's place.
//
// Terms, Offer and Change are plain values. [AnswerINIT] and [KernelOffer] use a
// connection for as long as they run, and keep nothing of it.
package fuseinit
