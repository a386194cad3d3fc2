package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/internal/mountcmd"
	"spfs/internal/privilege"
)

var mountFlag = &cli.StringFlag{
	Name:  "mount",
	Usage: "in place of --to: `'COMMAND'` mounts it, on %m",
}

// A mount that the command of --mount makes stands here until it is swapped in.
const (
	runDirectory  = "/run/spfs"
	stagingPrefix = "mount-"
	stagingPoint  = "new" // below a directory that its owner has locked
)

// newMount makes the mount that --mount or --to-fuse says, if one of them is
// there, and c's --to of it, with --move. The caller calls end after the swap.
func newMount(c *cli.Context) (end func() error, err error) {
	nothing := func() error { return nil }
	command := c.String("mount")
	given := 0
	for _, name := range []string{"to", "mount", "to-fuse"} {
		if c.IsSet(name) {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, exit.Usage("run: --to, --mount and --to-fuse exclude each other")
	case c.IsSet("init") && !c.IsSet("to-fuse"):
		return nil, exit.Usage("run: --init is for --to-fuse")
	case c.IsSet("to-fuse"):
		return stageFuse(c)
	case !c.IsSet("mount"):
		return nothing, nil
	case !mountcmd.Mounts(command):
		return nil, exit.Usage("run: --mount %q has no %%m, which stands for the directory where it must mount", command)
	}
	if err := privilege.NeedRoot(); err != nil {
		return nil, err
	}
	s, err := newStaging(stagingPrefix)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	err = mountcmd.Run(ctx, command, s.point())
	if err == nil {
		err = errors.Join(c.Set("to", s.point()), c.Set("move", "true"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--mount: %w", err), s.end())
	}
	return s.end, nil
}

// stageFuse is newMount for --to-fuse.
func stageFuse(c *cli.Context) (end func() error, err error) {
	if c.String("from") == "" {
		return nil, exit.Usage("run: --from is missing")
	}
	t, err := newToFuse(c)
	if err != nil {
		return nil, err
	}
	if err := privilege.NeedRoot(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	if err := t.mount(ctx); err != nil {
		return nil, fmt.Errorf("--to-fuse %s: %w", c.String("to-fuse"), err)
	}
	if err := errors.Join(c.Set("to", t.at.point()), c.Set("move", "true")); err != nil {
		return nil, errors.Join(err, t.end())
	}
	return t.end, nil
}

// staging is a directory to mount something in.
type staging struct {
	path string
	lock *os.File // the directory, locked while its owner lives
}

func newStaging(prefix string) (*staging, error) {
	if err := os.MkdirAll(runDirectory, 0o700); err != nil {
		return nil, err
	}
	sweepStaging()
	sweepKept()
	path, err := os.MkdirTemp(runDirectory, prefix) // mode 0700
	if err != nil {
		return nil, err
	}
	s, err := openStaging(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := os.Mkdir(s.point(), 0o700); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// openStaging takes a directory over. It fails if another process has it.
func openStaging(path string) (*staging, error) {
	lock, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &staging{path, lock}, nil
}

func (s *staging) point() string { return filepath.Join(s.path, stagingPoint) }

// end unmounts what is still mounted there, and removes the directory.
func (s *staging) end() error {
	err := unix.Unmount(s.point(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ENOENT { // nothing is mounted there
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", s.point(), err)
	} else if err = os.Remove(s.point()); err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.Remove(s.path)
	}
	s.lock.Close()
	return err
}

// sweepStaging ends those whose owner was killed.
func sweepStaging() {
	left, _ := filepath.Glob(filepath.Join(runDirectory, stagingPrefix+"*"))
	for _, path := range left {
		if s, err := openStaging(path); err == nil {
			// It is another's, and in nobody's way if it can't be removed.
			_ = s.end()
		}
	}
}
