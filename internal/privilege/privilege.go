// Package privilege says who may run the commands: root, for everything they
// do is mounting, tracing, or talking to those who mount. A command asks before
// it changes anything, so that the user reads what is missing in place of
// whichever call the kernel refused first. It owns nothing and gains nothing.
package privilege

import (
	"errors"
	"os"
)

// ErrNotRoot is what [NeedRoot] returns.
var ErrNotRoot = errors.New("must be run as root")

// geteuid is os.Geteuid, but for tests.
var geteuid = os.Geteuid

// NeedRoot returns [ErrNotRoot] if the effective user is another than root.
func NeedRoot() error {
	if geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}
