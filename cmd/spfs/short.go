package main

import "runtime/debug"

// mostMemory is what a command may use before garbage is collected.
const mostMemory = 512 << 20

// shortLived is called by commands that end in a moment, and during which a tree
// may be stopped: the collector would cost them more time than it saves memory.
func shortLived() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(mostMemory)
}
