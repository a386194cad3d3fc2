// Command bench measures swaps, checkpoints of trees with their own daemon against
// those on a plain directory, and the proxy against the bare directory and
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
		checkpoints(t)
		proxy(t)
	}))
}
