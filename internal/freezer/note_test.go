package freezer

import (
	"fmt"
	"os"
	"testing"
)

func TestNotesAreFound(t *testing.T) {
	for _, h := range hierarchies(t) {
		c, err := h.Create(fmt.Sprintf("spfs-test-note-%d", os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
		})
		noted := func() bool {
			all, err := h.Noted()
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range all {
				if n.Path() == c.Path() {
					return true
				}
			}
			return false
		}
		if noted() {
			t.Error("a note that nobody left")
		}
		if err := c.SetNote([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if b, err := c.Note(); string(b) != "hello" || err != nil || !noted() {
			t.Errorf("the note says %q, %v", b, err)
		}
		if err := c.SetNote(nil); err != nil || noted() {
			t.Errorf("the note stays: %v", err)
		}
		if err := c.SetNote(nil); err != nil {
			t.Errorf("no note to take away: %v", err)
		}
	}
}
