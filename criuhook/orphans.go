package criuhook

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/proctree"
)

// orphanage gets every process whose parent, a descendant of this process, has
// ended: what a CRIU that was killed leaves behind. It is for as long as no
// child is started by anyone else.
type orphanage struct {
	before []int // this process's children
}

func openOrphanage() (*orphanage, error) {
	before, err := proctree.Children(os.Getpid())
	if err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("prctl(PR_SET_CHILD_SUBREAPER): %w", err)
	}
	return &orphanage{before}, nil
}

// close ends it. Who has come stays.
func (*orphanage) close() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }

// kill ends all that have come, and theirs. It does not wait for it: who has
// files open on a connection that nobody answers can't end.
func (o *orphanage) kill() {
	for _, pid := range o.come() {
		// The others of a tree without a pid namespace come here one after the
		// other, as their parents end.
		tree, err := proctree.Of(pid)
		if err != nil {
			tree = []int{pid}
		}
		for _, pid := range tree {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// come are the children that there were not before.
func (o *orphanage) come() []int {
	now, err := proctree.Children(os.Getpid())
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(now, func(pid int) bool { return slices.Contains(o.before, pid) })
}

// orphanEnd is how long processes that were killed are waited for.
const orphanEnd = 10 * time.Second

// empty kills and reaps, until nobody is left.
func (o *orphanage) empty() error {
	for end := time.Now().Add(orphanEnd); ; time.Sleep(time.Millisecond) { // others' children are no event
		left := o.come()
		if len(left) == 0 {
			return nil
		}
		o.kill()
		for _, pid := range left {
			if _, err := unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil); err != nil && !errors.Is(err, unix.ECHILD) && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("waiting for process %d: %w", pid, err)
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v, which CRIU has left behind, do not end", left)
		}
	}
}
