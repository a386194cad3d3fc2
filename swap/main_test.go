package swap

import (
	"flag"
	"os"
	"testing"

	"spfs/test/rig"
)

// TestMain runs the tests in a mount namespace of their own, and looks for
// what they leave behind. Fuzzing needs none of that, and its workers are
// started by the name that a contained program does not have.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true" {
		os.Exit(m.Run())
	}
	os.Exit(rig.Contain(func() int {
		defer rig.RemoveBuilt()
		return m.Run()
	}))
}
