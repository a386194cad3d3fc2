package privilege

import (
	"errors"
	"testing"
)

func TestNeedRoot(t *testing.T) {
	defer func(f func() int) { geteuid = f }(geteuid)
	for uid, want := range map[int]error{0: nil, 1: ErrNotRoot, 65534: ErrNotRoot} {
		geteuid = func() int { return uid }
		if err := NeedRoot(); !errors.Is(err, want) {
			t.Errorf("user %d: %v, want %v", uid, err, want)
		}
	}
}
