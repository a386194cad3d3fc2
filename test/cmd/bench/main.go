// Command bench measures swaps, checkpoints of trees with their own daemon against
// those on a plain directory, and the proxy against the bare directory and
// against bindfs in the same run, and prints the results as tables. It is behind
// "make bench". Named as arguments, only those of swaps, checkpoints and proxy are
// measured.
package main

import (
	"os"
	"slices"

	"spfs/test/rig"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == floorArgument {
		os.Exit(measureFloor(os.Args[2:]))
	}
	os.Exit(rig.Program("bench", func(t rig.T) {
		t.Cleanup(rig.RemoveBuilt)
		for _, table := range []struct {
			name  string
			print func(rig.T)
		}{{"swaps", swaps}, {"checkpoints", checkpoints}, {"proxy", proxy}} {
			if len(os.Args) == 1 || slices.Contains(os.Args[1:], table.name) {
				table.print(t)
			}
		}
	}))
}
