// Package test holds the end-to-end tests: the commands as a user runs them,
// on real FUSE daemons, real CRIU and clients that verify themselves. One file
// per topic. They need root and what "make deps" installs; where something is
// missing they fail and say what.
//
// A test that fails may leave nothing behind all the same: see rig.Contain.
package test

import (
	"os"
	"testing"

	"spfs/test/rig"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Contain(func() int {
		defer rig.RemoveBuilt()
		return m.Run()
	}))
}
