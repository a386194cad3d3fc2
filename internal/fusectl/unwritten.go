package fusectl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Unwritten is what the kernel holds of a file system that was written through
// shared mappings, or into a writeback cache, and what became of that. The
// numbers of bytes may be short by some pages for each processor
// (include/linux/backing-dev.h, wb_stat); that of files is exact.
type Unwritten struct {
	Files int   // files with changes that the daemon has not been told yet
	Bytes int64 // of pages that have not been sent, or are on their way
	Ever  int64 // of pages that were written like this at any time
}

// UnwrittenOf reads that of the file system whose st_dev is dev, out of debugfs.
func UnwrittenOf(dev uint64) (Unwritten, error) {
	root, err := mount("debugfs")
	if err != nil {
		return Unwritten{}, err
	}
	defer root.Close()
	name := fmt.Sprintf("bdi/%d:%d", unix.Major(dev), unix.Minor(dev))
	text, err := readAt(root, name+"/stats")
	if errors.Is(err, unix.ENOENT) && unix.Major(dev) != 0 {
		text, err = readAt(root, name+"-fuseblk/stats") // fs/fuse/inode.c, fuse_bdi_init
	}
	if err != nil {
		return Unwritten{}, err
	}
	return parseStats(text)
}

var errStats = errors.New("not understood")

// parseStats reads a file of mm/backing-dev.c, bdi_debug_stats_show.
func parseStats(text string) (Unwritten, error) {
	var u Unwritten
	have := 0
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		n, err := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 53)
		switch key {
		case "BdiWriteback", "BdiReclaimable":
			u.Bytes += n << 10
		case "BdiDirtied":
			u.Ever = n << 10
		case "b_dirty", "b_io", "b_more_io":
			u.Files += int(n)
		default:
			continue
		}
		if err != nil || n < 0 {
			return Unwritten{}, fmt.Errorf("statistics of a file system, line %q: %w", line, errStats)
		}
		have++
	}
	if have != 6 {
		return Unwritten{}, fmt.Errorf("statistics of a file system: %d of 6 lines: %w", have, errStats)
	}
	return u, nil
}
