// Package thread runs functions on threads of their own, which are thrown
// away after: for what Linux keeps per thread and Go's scheduler must not get
// back (namespaces, credentials, a filesystem context).
//
// It owns the thread and nothing else. It never changes one itself.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls fn on a thread that ends with it, and returns its error. It may be
// called from any goroutine; fn must not start goroutines that count on being
// on the thread.
func Run(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			result <- fn() // still locked: the thread ends with the goroutine
			return
		}
		// The runtime parks the main thread instead of ending it, and
		// /proc/self would show what was done to it for good. While it is
		// held here, the next goroutine can't get it.
		defer runtime.UnlockOSThread()
		other := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			other <- fn()
		}()
		result <- <-other
	}()
	return <-result
}
