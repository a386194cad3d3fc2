//go:build !faults

package fault

// Point is a place where a test may kill the program.
func Point(string) {}
