package criuhook

import (
	"errors"
	"fmt"
	"testing"

	"spfs/handover"
	"spfs/internal/exit"
)

func TestWhatHandoverRefusesIsRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{handover.ErrNoDaemon, 3},
		{handover.ErrOwnMount, 3},
		{handover.ErrCircle, 3},
		{handover.ErrOutside, 3},
		{handover.ErrDirect, 3},
		{errors.New("no space left"), 1},
	} {
		if code := exit.Status(refused(fmt.Errorf("the tree: %w", c.err))); code != c.code {
			t.Errorf("%v: exit status %d, want %d", c.err, code, c.code)
		}
	}
}
