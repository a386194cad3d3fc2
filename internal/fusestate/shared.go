package fusestate

import "sync"

// shared loads the Reader of the process, once.
var shared = sync.OnceValues(Load)

// Preload begins to load the programs and returns at once: whoever calls
// [Shared] later waits less.
func Preload() { go shared() }

// Shared returns the process's own Reader, which is loaded by the first call
// and never closed, or the error that loading it gave.
func Shared() (*Reader, error) { return shared() }
