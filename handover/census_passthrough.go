package handover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
)

// flagPassthrough is FUSE_PASSTHROUGH of include/uapi/linux/fuse.h.
const flagPassthrough = 1 << 37

// findBacked finds mappings of files that the kernel reads directly, past their
// daemon. They count for the file system beneath (fs/backing-file.c,
// backing_file_mmap), and only their link leads to the mount: from what is
// mapped at a path below it.
func (c *census) findBacked() error {
	var backed bool
	for conn := range c.served {
		s := c.state.ConnOf(unix.Mkdev(0, uint32(conn)))
		backed = backed || c.state.Partial || s != nil && s.Flags&flagPassthrough != 0
	}
	if !backed {
		return nil
	}
	known := make(map[string]bool)
	for _, u := range c.users {
		if u.mapped {
			known[u.link] = true
		}
	}
	for _, pid := range c.pids {
		points, err := c.mountPoints(pid)
		if err != nil || len(points) == 0 {
			if err != nil && !zombie(pid) {
				return err
			}
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			span, at, _ := strings.Cut(line, " ")
			_, at, ok := strings.Cut(at, "/")
			if !ok || !anyBelow(points, "/"+strings.TrimSuffix(at, "\n")) {
				continue
			}
			link := fmt.Sprintf("/proc/%d/map_files/%s", pid, trimZeros(span))
			if known[link] {
				continue
			}
			u, err := c.backed(pid, link, span)
			if err != nil {
				return err
			}
			if u != nil {
				c.users = append(c.users, *u)
			}
		}
	}
	return nil
}

// trimZeros writes a range of addresses as map_files does: without the zeros
// that maps pads short addresses with.
func trimZeros(span string) string {
	start, end, _ := strings.Cut(span, "-")
	s, err1 := strconv.ParseUint(start, 16, 64)
	e, err2 := strconv.ParseUint(end, 16, 64)
	if errors.Join(err1, err2) != nil {
		return span
	}
	return fmt.Sprintf("%x-%x", s, e)
}

func anyBelow(points []string, p string) bool {
	for _, point := range points {
		if _, ok := below(point, p); ok {
			return true
		}
	}
	return false
}

// mountPoints are where a process sees the census's connections.
func (c *census) mountPoints(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("the mounts of %s: %w", describe(pid), err)
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		major, minor, _ := strings.Cut(fields[2], ":")
		conn, err := strconv.ParseUint(minor, 10, 32)
		if err == nil && major == "0" && c.served[conn] != nil {
			points = append(points, filepath.Clean(unescape(fields[4])))
		}
	}
	return points, nil
}

// unescape undoes the octal escapes of mountinfo (fs/proc_namespace.c, mangle).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}

// backed makes a user of a mapping, or none if it is not on one of the
// connections after all.
func (c *census) backed(pid int, link, span string) (*user, error) {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil, nil // unmapped since
	}
	if err != nil {
		return nil, fmt.Errorf("%s, a mapping at %s: %w", describe(pid), span, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return nil, fmt.Errorf("%s, a mapping at %s: statx: %w", describe(pid), span, err)
	}
	conn := uint64(st.Dev_minor)
	if st.Dev_major != 0 || c.served[conn] == nil {
		return nil, nil
	}
	id, generation, err := nodeOf(fd)
	if err != nil {
		return nil, fmt.Errorf("%s, a mapping at %s: %w", describe(pid), span, err)
	}
	return &user{pid: pid, conn: conn, what: "a mapping at " + span, link: link, mount: int(st.Mnt_id), mapped: true,
		node: &fusestate.Node{Dev: unix.Mkdev(0, st.Dev_minor), ID: id, Generation: uint32(generation), OrigIno: st.Ino}}, nil
}
