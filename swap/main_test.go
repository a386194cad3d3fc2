package swap

import (
	"os"
	"testing"

	"spfs/test/rig"
)

// TestMain runs the tests in a mount namespace of their own, and looks for
// what they leave behind.
func TestMain(m *testing.M) {
	os.Exit(rig.Contain(func() int {
		defer rig.RemoveBuilt()
		return m.Run()
	}))
}
