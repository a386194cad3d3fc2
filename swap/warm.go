package swap

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// warm has the kernel read those pages of the new files over which private pages
// will be copied: to write to a page of a private mapping, even all of it, takes the
// file's page first (mm/memory.c do_cow_fault), and its daemon would be asked for
// each while processes are stopped. What can't be read now, or not before ctx ends, is
// read then.
func warm(ctx context.Context, u *Usage) {
	var g errgroup.Group
	g.SetLimit(8 * runtime.GOMAXPROCS(0)) // each waits for the daemon, not for a processor
	for _, s := range u.Spaces {
		g.Go(func() error {
			pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", s.Tasks[0].PID))
			if err != nil {
				return nil
			}
			defer pagemap.Close()
			for _, m := range s.Mappings {
				if m.Shared || m.Replacement == nil || ctx.Err() != nil {
					continue
				}
				runs, err := privatePages(pagemap, m.Start, m.End)
				if err != nil {
					return nil
				}
				for _, r := range runs {
					readPages(ctx, m.Replacement, int64(m.Offset+r.start-m.Start), int64(r.end-r.start))
				}
			}
			return nil
		})
	}
	_ = within(ctx, "reading what will be copied over", g.Wait)
}

// readPages reads a part of a file, for the kernel to have it.
func readPages(ctx context.Context, f *os.File, from, length int64) {
	buf := make([]byte, min(length, 128<<10))
	for at := from; at < from+length && ctx.Err() == nil; at += int64(len(buf)) {
		if n, err := unix.Pread(int(f.Fd()), buf, at); n <= 0 || err != nil {
			return
		}
	}
}
