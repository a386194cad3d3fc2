package freezer

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// noteName is the extended attribute that a note is kept in: kernfs keeps those
// as long as the cgroup lives (fs/kernfs/inode.c).
const noteName = "trusted.spfs.note"

// maxNote bounds a note: XATTR_SIZE_MAX.
const maxNote = 64 << 10

// SetNote leaves a note on the cgroup, for whoever finds it after us. An empty
// one takes it away.
func (c *Cgroup) SetNote(note []byte) error {
	var err error
	if len(note) == 0 {
		if err = unix.Removexattr(c.path, noteName); err == unix.ENODATA || err == unix.ENOENT {
			err = nil
		}
	} else {
		err = unix.Setxattr(c.path, noteName, note, 0)
	}
	if err != nil {
		return fmt.Errorf("leaving a note on cgroup %s: %w", c.path, err)
	}
	return nil
}

// Note returns the note on the cgroup, or nothing.
func (c *Cgroup) Note() ([]byte, error) {
	b := make([]byte, maxNote)
	n, err := unix.Getxattr(c.path, noteName, b)
	switch err {
	case nil:
		return b[:n], nil
	case unix.ENODATA, unix.ENOENT, unix.EOPNOTSUPP:
		return nil, nil
	}
	return nil, fmt.Errorf("the note on cgroup %s: %w", c.path, err)
}

// Noted returns all cgroups with a note on them.
func (h *Hierarchy) Noted() ([]*Cgroup, error) {
	var found []*Cgroup
	err := filepath.WalkDir(h.point, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since
		}
		if err != nil || !d.IsDir() {
			return err
		}
		c := h.Open(path)
		note, err := c.Note()
		if len(note) > 0 {
			found = append(found, c)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for notes on cgroups: %w", err)
	}
	return found, nil
}
