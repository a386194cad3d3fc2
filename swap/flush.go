package swap

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/fusedev"
)

// flusher writes back what processes wrote through the old mount and its
// daemon does not have yet, or has but keeps to itself: pages of shared
// mappings, and of a writeback cache; and what a daemon such as sshfs has
// acknowledged and not sent on. Nothing is asked of a daemon that is silent: what
// it does not have is lost (see [Plan.lost]). It closes a copy of every description that may
// be written to: fs/fuse/file.c fuse_flush writes the inode's pages, waits for
// them, and sends FUSE_FLUSH for that very file handle.
type flusher struct {
	plan *Plan
	done map[FDRef]uint64 // what has been flushed since everybody is stopped, and its inode
}

// skip notes that the descriptions have been flushed.
func (f *flusher) skip(list []*Description) {
	for _, d := range list {
		for _, ref := range d.Refs {
			f.done[ref] = d.Ino
		}
	}
}

// onlyPages says that flushing writes pages and does nothing else: the daemon has no
// FLUSH, and the kernel keeps neither times nor sizes back from it.
func (l *kernelLook) onlyPages() bool {
	return l.conn != nil && l.conn.Unsupported&(1<<fusedev.OpFlush) != 0 && l.conn.Flags&fuse.CAP_WRITEBACK_CACHE == 0
}

// unwritten says whether anyone has a file or mapping of which there are pages that
// the daemon does not have yet.
func (l *kernelLook) unwritten() bool {
	for _, u := range l.uses {
		for i := range u.files {
			if u.files[i].Unwritten {
				return true
			}
		}
		for i := range u.mappings {
			if u.mappings[i].Unwritten {
				return true
			}
		}
	}
	return false
}

// copies takes descriptors out of processes, of each by one pidfd.
type copies struct {
	mu     sync.Mutex
	pidfds map[Task]int
}

func (c *copies) take(ref FDRef) (int, error) {
	c.mu.Lock()
	pidfd, known := c.pidfds[ref.Task]
	if !known {
		var err error
		if pidfd, err = openPidfd(ref.Task); err != nil {
			c.mu.Unlock()
			return -1, fmt.Errorf("opening a pidfd of process %d: %w", ref.PID, err)
		}
		c.pidfds[ref.Task] = pidfd
	}
	c.mu.Unlock()
	return takeThrough(pidfd, ref)
}

func (c *copies) close() {
	for _, fd := range c.pidfds {
		unix.Close(fd)
	}
}

// pending are the descriptions of u that have not been flushed.
func (f *flusher) pending(u *Usage) (list []*Description) {
	if f.plan.Silent() {
		return nil
	}
next:
	for _, d := range u.Descriptions {
		if !d.writes() {
			continue
		}
		for _, ref := range d.Refs {
			if ino, ok := f.done[ref]; ok && ino == d.Ino {
				continue next
			}
		}
		list = append(list, d)
	}
	return list
}

// flush flushes the descriptions, and all mappings of u that no description
// leads to. It returns when the daemon has everything.
func (f *flusher) flush(ctx context.Context, u *Usage, list []*Description) error {
	if f.plan.Silent() {
		return nil
	}
	var g errgroup.Group
	// Each waits for the daemon, not for a processor.
	atOnce := 8 * runtime.GOMAXPROCS(0)
	from := &copies{pidfds: map[Task]int{}}
	covered := map[uint64]bool{}
	for _, d := range u.Descriptions {
		if d.writes() {
			covered[d.Ino] = true
		}
	}
	f.skip(list)
	var next atomic.Int64
	for range min(atOnce, len(list)) {
		g.Go(func() error {
			for i := next.Add(1) - 1; int(i) < len(list) && ctx.Err() == nil; i = next.Add(1) - 1 {
				fd, err := from.take(list[i].Refs[0])
				if err := flushed(fd, err, list[i].Path); err != nil {
					return err
				}
			}
			return nil
		})
	}
	var maps errgroup.Group
	maps.SetLimit(atOnce)
	for _, s := range u.Spaces {
		for _, m := range s.Mappings {
			if !m.writes() || covered[m.Ino] {
				continue
			}
			covered[m.Ino] = true
			maps.Go(func() error {
				// The file was closed after mmap: only the mapping leads to it.
				name := fmt.Sprintf("/proc/%d/map_files/%x-%x", s.Tasks[0].PID, m.Start, m.End)
				fd, err := eintr.Get(func() (int, error) { return unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
				return flushed(fd, err, m.Path)
			})
		}
	}
	return within(ctx, "flushing the old mount", func() error {
		defer from.close()
		return errors.Join(g.Wait(), maps.Wait())
	})
}

// flushed flushes by closing fd, unless err says that it could not be had.
func flushed(fd int, err error, path string) error {
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EBADF), errors.Is(err, unix.ENOENT):
		// Closed, unmapped or ended since it was found. Who looks again sees
		// what came of it.
		return nil
	case err != nil:
		return fmt.Errorf("flushing %s of the old mount: %w", path, err)
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("flushing %s of the old mount: its daemon says: %w", path, err)
	}
	return nil
}
