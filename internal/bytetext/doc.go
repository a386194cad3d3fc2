// Package bytetext writes byte strings of the kernel's (paths, extended
// attributes) as text that JSON can hold, and reads them back exactly.
//
// It owns nothing. It never says what a byte string means, and trusts none.
package bytetext
