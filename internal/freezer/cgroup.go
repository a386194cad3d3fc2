package freezer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is one group of processes.
type Cgroup struct {
	path string
	v2   bool
	top  bool // the hierarchy's root, which can't be frozen
}

// Path is its directory.
func (c *Cgroup) Path() string { return c.path }

// Top says whether it is its hierarchy's root, which can't be frozen.
func (c *Cgroup) Top() bool { return c.top }

// Members returns the processes in it and in the cgroups below it. One that is
// gone has none.
func (c *Cgroup) Members() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(c.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if path != c.path && errors.Is(err, fs.ErrNotExist) {
				return nil // removed since
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, unix.EOPNOTSUPP) {
			// A threaded cgroup: its processes are those of one above.
			return nil
		}
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return fmt.Errorf("%q is no pid", word)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the members of cgroup %s: %w", c.path, err)
	}
	return pids, nil
}

// Add moves a process, all its threads, to the cgroup.
func (c *Cgroup) Add(pid int) error {
	if err := c.write("cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("moving process %d to cgroup %s: %w", pid, c.path, err)
	}
	return nil
}

// Freeze asks for the cgroup to be frozen; [Cgroup.AwaitFrozen] waits for it.
func (c *Cgroup) Freeze() error {
	if err := c.set(true); err != nil {
		return fmt.Errorf("freezing cgroup %s: %w", c.path, err)
	}
	return nil
}

// Thaw lets the cgroup's processes go on. One that is not frozen, or that is
// gone, is no error.
func (c *Cgroup) Thaw() error {
	if err := c.set(false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("thawing cgroup %s: %w", c.path, err)
	}
	return nil
}

func (c *Cgroup) set(frozen bool) error {
	switch {
	case c.v2 && frozen:
		return c.write("cgroup.freeze", "1")
	case c.v2:
		return c.write("cgroup.freeze", "0")
	case frozen:
		return c.write("freezer.state", "FROZEN")
	}
	return c.write("freezer.state", "THAWED")
}

// Frozen says whether the cgroup was asked to be frozen.
func (c *Cgroup) Frozen() (bool, error) {
	file, want := "cgroup.freeze", "1"
	if !c.v2 {
		file, want = "freezer.self_freezing", "1"
	}
	text, err := os.ReadFile(filepath.Join(c.path, file))
	if err != nil {
		return false, fmt.Errorf("whether cgroup %s is frozen: %w", c.path, err)
	}
	return strings.TrimSpace(string(text)) == want, nil
}

// pollInterval is how often v1's freezer, which has no event, is asked.
const pollInterval = time.Millisecond

// AwaitFrozen waits until every task of the cgroup rests in the freezer.
func (c *Cgroup) AwaitFrozen(ctx context.Context) error {
	events := filepath.Join(c.path, "cgroup.events")
	if !c.v2 {
		events = filepath.Join(c.path, "freezer.state")
	}
	f, err := os.Open(events)
	if err != nil {
		return fmt.Errorf("waiting for cgroup %s to freeze: %w", c.path, err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return fmt.Errorf("waiting for cgroup %s to freeze: %w", c.path, err)
		}
		if c.isFrozen(string(buf[:n])) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("cgroup %s does not freeze: %w", c.path, err)
		}
		if !c.v2 {
			// A read of freezer.state brings it up to date
			// (kernel/cgroup/legacy_freezer.c, freezer_read).
			time.Sleep(pollInterval)
			continue
		}
		// kernfs tells changes of the file by POLLPRI
		// (kernel/cgroup/cgroup.c, cgroup_file_notify).
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 10); err != nil && err != unix.EINTR {
			return fmt.Errorf("waiting for cgroup %s to freeze: poll: %w", c.path, err)
		}
	}
}

func (c *Cgroup) isFrozen(text string) bool {
	if !c.v2 {
		return strings.TrimSpace(text) == "FROZEN"
	}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "frozen 1" {
			return true
		}
	}
	return false
}

// Remove removes a cgroup that [Hierarchy.Create] has made, and that has no
// members any more.
func (c *Cgroup) Remove() error {
	if err := unix.Rmdir(c.path); err != nil && err != unix.ENOENT {
		return fmt.Errorf("removing cgroup %s: %w", c.path, err)
	}
	return nil
}

// write writes one of the cgroup's files in one call.
func (c *Cgroup) write(file, text string) error {
	f, err := os.OpenFile(filepath.Join(c.path, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
