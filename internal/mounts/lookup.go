package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// ErrNotMounted is returned by [Lookup] for a path that is no mount point.
var ErrNotMounted = errors.New("not a mount point")

// Lookup finds the mount that is visible at path in the caller's namespace.
// The Point of the result is as seen from the caller's root.
//
// It reads the mount table and never asks a FUSE file system: what stands
// there may be shut, hung or dead. Symlinks on the way are followed, save
// inside FUSE.
func Lookup(path string) (*Mount, error) {
	if path == "" {
		return nil, fmt.Errorf("%q: %w", path, ErrNotMounted)
	}
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	var table Table
	if err := thread.Run(func() (err error) {
		table, err = threadMounts(proc)
		return err
	}); err != nil {
		return nil, err
	}
	// The working directory as the kernel has it, without $PWD's help:
	// os.Getwd calls stat(2) on it.
	full := path
	if !strings.HasPrefix(path, "/") {
		var buf [unix.PathMax]byte
		n, err := unix.Getcwd(buf[:])
		if err != nil {
			return nil, fmt.Errorf("%s: working directory: %w", path, err)
		}
		full = string(buf[:n-1]) + "/" + path
	}
	real, err := table.resolve(full)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m := table.Top(real)
	if m == nil {
		return nil, fmt.Errorf("%s: %w", path, ErrNotMounted)
	}
	return m, nil
}

// maxSymlinks is the kernel's MAXSYMLINKS (include/linux/namei.h).
const maxSymlinks = 40

// resolve follows the symlinks in an absolute path. Mount points are not
// looked at (they can't be symlinks), nor is anything inside FUSE.
func (t Table) resolve(path string) (string, error) {
	done, rest, links := "/", path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		switch name {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, name)
		at := t.Containing(next)
		if at == nil || at.Point == next || at.FUSE() {
			done = next
			continue
		}
		target, err := os.Readlink(next)
		if errors.Is(err, unix.EINVAL) { // no symlink
			done = next
			continue
		}
		if err != nil {
			return "", err
		}
		if links++; links > maxSymlinks {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			done = "/"
		}
		rest = target + "/" + rest
	}
	return done, nil
}
