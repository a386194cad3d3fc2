// Command bench measures swaps, and the proxy against the bare directory and
// against bindfs in the same run, and prints the results as tables. It is behind
// "make bench".
package main

import (
	"os"

	"spfs/test/rig"
)

func main() {
	os.Exit(rig.Program("bench", func(t rig.T) {
		t.Cleanup(rig.RemoveBuilt)
		swaps(t)
		proxy(t)
	}))
}
