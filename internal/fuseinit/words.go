package fuseinit

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// flagsByName are the flags as users write them: the kernel's FUSE_NAME
// (include/uapi/linux/fuse.h) in small letters.
var flagsByName = map[string]uint64{
	"async_read":           fuse.CAP_ASYNC_READ,
	"posix_locks":          fuse.CAP_POSIX_LOCKS,
	"file_ops":             fuse.CAP_FILE_OPS,
	"atomic_o_trunc":       fuse.CAP_ATOMIC_O_TRUNC,
	"export_support":       fuse.CAP_EXPORT_SUPPORT,
	"big_writes":           fuse.CAP_BIG_WRITES,
	"dont_mask":            fuse.CAP_DONT_MASK,
	"splice_write":         fuse.CAP_SPLICE_WRITE,
	"splice_move":          fuse.CAP_SPLICE_MOVE,
	"splice_read":          fuse.CAP_SPLICE_READ,
	"flock_locks":          fuse.CAP_FLOCK_LOCKS,
	"has_ioctl_dir":        fuse.CAP_IOCTL_DIR,
	"auto_inval_data":      fuse.CAP_AUTO_INVAL_DATA,
	"do_readdirplus":       fuse.CAP_READDIRPLUS,
	"readdirplus_auto":     fuse.CAP_READDIRPLUS_AUTO,
	"async_dio":            fuse.CAP_ASYNC_DIO,
	"writeback_cache":      fuse.CAP_WRITEBACK_CACHE,
	"no_open_support":      fuse.CAP_NO_OPEN_SUPPORT,
	"parallel_dirops":      fuse.CAP_PARALLEL_DIROPS,
	"handle_killpriv":      fuse.CAP_HANDLE_KILLPRIV,
	"posix_acl":            fuse.CAP_POSIX_ACL,
	"abort_error":          fuse.CAP_ABORT_ERROR,
	"max_pages":            fuse.CAP_MAX_PAGES,
	"cache_symlinks":       fuse.CAP_CACHE_SYMLINKS,
	"no_opendir_support":   fuse.CAP_NO_OPENDIR_SUPPORT,
	"explicit_inval_data":  fuse.CAP_EXPLICIT_INVAL_DATA,
	"map_alignment":        fuse.CAP_MAP_ALIGNMENT,
	"submounts":            fuse.CAP_SUBMOUNTS,
	"handle_killpriv_v2":   fuse.CAP_HANDLE_KILLPRIV_V2,
	"setxattr_ext":         fuse.CAP_SETXATTR_EXT,
	"init_ext":             fuse.CAP_INIT_EXT,
	"security_ctx":         fuse.CAP_SECURITY_CTX,
	"has_inode_dax":        fuse.CAP_HAS_INODE_DAX,
	"create_supp_group":    fuse.CAP_CREATE_SUPP_GROUP,
	"has_expire_only":      fuse.CAP_HAS_EXPIRE_ONLY,
	"direct_io_allow_mmap": fuse.CAP_DIRECT_IO_ALLOW_MMAP,
	"passthrough":          fuse.CAP_PASSTHROUGH,
	"no_export_support":    fuse.CAP_NO_EXPORT_SUPPORT,
	"has_resend":           fuse.CAP_HAS_RESEND,
	"allow_idmap":          fuse.CAP_ALLOW_IDMAP,
	"over_io_uring":        fuse.CAP_OVER_IO_URING,
	"request_timeout":      fuse.CAP_REQUEST_TIMEOUT,
}

// FlagNames lists flags for a message.
func FlagNames(flags uint64) string {
	var names []string
	for name, bit := range flagsByName {
		if flags&bit != 0 {
			names = append(names, name)
			flags &^= bit
		}
	}
	slices.Sort(names)
	for ; flags != 0; flags &= flags - 1 {
		names = append(names, fmt.Sprintf("bit %d", bits.TrailingZeros64(flags)))
	}
	return strings.Join(names, ", ")
}

// Change is what a user wants to be other than it was negotiated.
type Change struct {
	set, clear uint64
	only       bool // set is all the flags that there are to be
	numbers    map[string]uint64
}

// numbers of Terms, and their least and largest.
var numberRange = map[string][2]uint64{
	"minor":                {12, 1 << 16}, // process_init_reply: below 7.12 the answer is shorter
	"max_readahead":        {0, MaxMessage},
	"max_background":       {0, 1<<16 - 1},
	"congestion_threshold": {0, 1<<16 - 1},
	"max_write":            {4096, MaxMessage},
	"time_gran":            {1, 1e9},
	"max_pages":            {1, 1<<16 - 1},
	"max_stack_depth":      {0, 2},
}

// ParseChange reads what a user says: words with commas between them. FLAG is to
// be there, -FLAG not; NAME=NUMBER is one of the numbers of INIT; flags=NUMBER
// stands for all flags that are not named.
func ParseChange(s string) (*Change, error) {
	c := &Change{numbers: make(map[string]uint64)}
	for _, word := range strings.Split(s, ",") {
		name, number, isNumber := strings.Cut(word, "=")
		if isNumber {
			n, err := strconv.ParseUint(number, 0, 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %q is not a number", word, number)
			}
			if name == "flags" {
				c.only, c.set = true, c.set|n
				continue
			}
			limits, known := numberRange[name]
			if !known {
				return nil, fmt.Errorf("%q: INIT has no number %q, only flags, %s", word, name, strings.Join(slices.Sorted(maps.Keys(numberRange)), ", "))
			}
			if n < limits[0] || n > limits[1] {
				return nil, fmt.Errorf("%q: it must be from %d to %d", word, limits[0], limits[1])
			}
			c.numbers[name] = n
			continue
		}
		flag, not := strings.CutPrefix(word, "-")
		bit, known := flagsByName[flag]
		switch {
		case !known:
			return nil, fmt.Errorf("%q: INIT has no flag %q; there are: %s", word, flag, strings.Join(slices.Sorted(maps.Keys(flagsByName)), ", "))
		case not:
			c.clear |= bit
		default:
			c.set |= bit
		}
	}
	if both := c.set & c.clear; both != 0 {
		return nil, fmt.Errorf("%s is to be there and not to be there", FlagNames(both))
	}
	return c, nil
}

// Apply makes the terms what they are with a change. What nobody knew is then
// what any daemon works with, but for what the user said.
func (t *Terms) Apply(c *Change) {
	if !t.Known {
		unsupported := t.Unsupported
		*t = plain()
		t.Unsupported = unsupported
	}
	if c.only {
		t.Flags = 0
	}
	t.Flags = t.Flags&^c.clear | c.set
	for name, n := range c.numbers {
		switch name {
		case "minor":
			t.Minor = uint32(n)
		case "max_readahead":
			t.MaxReadahead = uint32(n)
		case "max_background":
			t.MaxBackground = uint16(n)
		case "congestion_threshold":
			t.CongestionThreshold = uint16(n)
		case "max_write":
			t.MaxWrite = uint32(n)
		case "time_gran":
			t.TimeGran = uint32(n)
		case "max_pages":
			t.MaxPages = uint16(n)
			t.Flags |= fuse.CAP_MAX_PAGES // or the kernel does not look at it
		case "max_stack_depth":
			t.MaxStackDepth = uint32(n)
		}
	}
}
