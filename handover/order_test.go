package handover

import (
	"errors"
	"slices"
	"testing"
)

func TestUsersAreStoppedBeforeWhomTheyUse(t *testing.T) {
	uses := map[int][]int{1 << 30: {1<<30 + 1, 1<<30 + 2}, 1<<30 + 1: {1<<30 + 2}, 1<<30 + 3: {1 << 30}}
	daemons := []int{1 << 30, 1<<30 + 1, 1<<30 + 2, 1<<30 + 3}
	order, err := sorted(daemons, uses)
	if err != nil {
		t.Fatal(err)
	}
	for pid, servers := range uses {
		for _, s := range servers {
			if slices.Index(order, pid) > slices.Index(order, s) {
				t.Errorf("%v: %d is stopped after %d, which it uses", order, pid, s)
			}
		}
	}
	if len(order) != 4 {
		t.Errorf("order %v", order)
	}
	uses[1<<30+2] = []int{1<<30 + 3}
	if order, err := sorted(daemons, uses); !errors.Is(err, ErrCircle) {
		t.Errorf("a circle: %v, %v", order, err)
	}
}
