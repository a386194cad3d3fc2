package handover

import "testing"

func TestUnmark(t *testing.T) {
	for _, i := range []int{0, 7, 12345} {
		if got, ok := unmark(Mark(i)); !ok || got != i {
			t.Errorf("%s: %d, %v", Mark(i), got, ok)
		}
	}
	for _, name := range []string{"", ".spfs-handle-", ".spfs-handle--1", ".spfs-handle-01", ".spfs-handle-+1", "x.spfs-handle-1"} {
		if i, ok := unmark(name); ok {
			t.Errorf("%q is taken for mark %d", name, i)
		}
	}
}
