package handover

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/proctree"
)

// threads tells whose the numbers are by which a connection names who asks:
// those of the pid namespace that it was mounted in (fs/fuse/dev.c fuse_get_req,
// fc->pid_ns).
type threads struct {
	root int // the tree's

	// level says how far beneath this process's that namespace is. With 0
	// everybody has a number there; else only the tree's processes, and whoever
	// has entered it: CRIU has none. It may be unseen, too: outside of this
	// process's.
	level int

	numbers map[int]int  // by the connection's number: this process's; level > 0
	known   map[int]bool // by the connection's number: is of the tree; level 0. Nobody comes by another's in so short a time
}

// unseen: what a number says can't be told.
const unseen = -1

// threadsOf finds out in which namespace the connection of a daemon was mounted:
// a tree that was restored before has one that was made outside of it. asked
// has the connection asked for something by the calling thread, and returns the
// number by which that was named.
func threadsOf(root, daemon int, asked func() (int, error)) (*threads, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := &threads{root: root, numbers: make(map[int]int), known: make(map[int]bool)}
	number, err := asked()
	if err != nil || number == unix.Gettid() {
		return t, err
	}
	numbers, err := proctree.Numbers(daemon)
	if err != nil {
		return nil, err
	}
	// The daemon most likely has its number from whoever has mounted it.
	if t.level = len(numbers) - 1; t.level == 0 || number != 0 {
		t.level = unseen
	}
	return t, nil
}

// goesOn says whether a thread is one of the tree's that will run on, if it is
// let. One that is ending asks for nothing but to be rid of what it has, and
// whoever has killed it waits for that: one that can't be found, too.
func (t *threads) goesOn(tid int) bool {
	if tid == 0 {
		return false
	}
	switch t.level {
	case unseen:
		return false
	case 0:
		return t.descends(tid) && !proctree.Ending(tid)
	}
	here := t.here(tid)
	return here != 0 && !proctree.Ending(here)
}

// kernel says whether it is the kernel that asks, for itself.
func (t *threads) kernel(tid int) bool {
	return tid == 0 || t.level == 0 && proctree.Kernel(tid)
}

func (t *threads) descends(tid int) bool {
	is, known := t.known[tid]
	if !known {
		is = proctree.Descends(tid, t.root)
		t.known[tid] = is
	}
	return is
}

// here is the number that this process has for a thread of the tree, or 0.
func (t *threads) here(tid int) int {
	if t.numbers[tid] == 0 {
		t.number()
	}
	return t.numbers[tid]
}

// number finds the numbers of all threads of the tree.
func (t *threads) number() {
	pids, err := proctree.Of(t.root)
	if err != nil {
		return // it is gone
	}
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return
		}
		for _, task := range tasks {
			n, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				continue
			}
			if numbers, err := proctree.Numbers(n); err == nil && len(numbers) > t.level {
				t.numbers[numbers[t.level]] = n
			}
		}
	}
}

// learn lets a stand-in that answers know by whom it is asked. root is the root of
// the connection's mount.
func (s *standIn) learn(tree, daemon, root int) error {
	t, err := threadsOf(tree, daemon, func() (int, error) {
		var st unix.Statfs_t
		// Never out of a cache: fs/fuse/inode.c fuse_statfs.
		if err := eintr.Retry(func() error { return unix.Fstatfs(root, &st) }); err != nil {
			return 0, fmt.Errorf("connection %d: fstatfs: %w", s.rec.ID, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.statfsFor, nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.threads = t
	return err
}
