package criuhook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/control"
	"spfs/internal/eintr"
	"spfs/internal/mounts"
)

// runDirectory holds a directory for each restore under way, or whose tree
// still waits for its file systems.
const (
	runDirectory    = "/run/spfs"
	workspacePrefix = "restore-"
)

// workspace is the directory of one restore:
//
//	stub-N        where the spfs mount for file system N is
//	real-N        where a command of --mount must mount it
//	connection-N  where the connection for the daemon of file system N is
//
// Its owner holds a flock on it; a workspace without one is another restore's
// that has ended, or was killed.
type workspace struct {
	path string
	dir  *os.File
}

func newWorkspace() (*workspace, error) {
	if err := os.MkdirAll(runDirectory, 0o700); err != nil {
		return nil, err
	}
	sweep()
	path, err := os.MkdirTemp(runDirectory, workspacePrefix) // mode 0700
	if err != nil {
		return nil, err
	}
	return openWorkspace(path)
}

// openWorkspace takes an existing workspace over. It fails if another process
// has it.
func openWorkspace(path string) (*workspace, error) {
	return lockWorkspace(path, unix.LOCK_EX|unix.LOCK_NB)
}

// awaitWorkspace takes an existing workspace over when nobody else has it.
func awaitWorkspace(path string) (*workspace, error) {
	return lockWorkspace(path, unix.LOCK_EX)
}

func lockWorkspace(path string, how int) (*workspace, error) {
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := eintr.Retry(func() error { return unix.Flock(int(dir.Fd()), how) }); err != nil {
		dir.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &workspace{path, dir}, nil
}

// mkdir makes a directory for a mount and returns its path.
func (w *workspace) mkdir(kind string, n int) (string, error) {
	path := filepath.Join(w.path, fmt.Sprintf("%s-%d", kind, n))
	return path, os.Mkdir(path, 0o700)
}

// mkfile makes a file for the mount of one and returns its path.
func (w *workspace) mkfile(kind string, n int) (string, error) {
	path := filepath.Join(w.path, fmt.Sprintf("%s-%d", kind, n))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	return path, f.Close()
}

// close gives the workspace up, and removes it unless a tree still waits on a
// stub in it.
func (w *workspace) close() error {
	defer w.dir.Close()
	return w.tidy()
}

// tidy removes what is not needed any more: what is mounted in the workspace
// other than stubs that a tree waits on, and every directory without a mount.
func (w *workspace) tidy() error {
	entries, err := os.ReadDir(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // who had it before has removed it
	}
	if err != nil {
		return err
	}
	var errs []error
	needed := false
	for _, e := range entries {
		p := filepath.Join(w.path, e.Name())
		if strings.HasPrefix(e.Name(), "stub-") && waitedOn(p) {
			needed = true
			continue
		}
		errs = append(errs, clearMountPoint(p))
	}
	if !needed {
		errs = append(errs, removeIfThere(w.path))
	}
	return errors.Join(errs...)
}

// StubEnded is called by the daemon of a stub when its connection has ended. If
// the stub was mounted in a workspace, at path, it clears that mount point, where
// a swap has mounted the new file system as it has wherever the stub was; and
// the workspace, if nobody waits on another stub in it. It waits for a restore
// that still works there. Of any other mount point it does nothing.
func StubEnded(path string) error {
	dir := filepath.Dir(path)
	if ok, err := filepath.Match(filepath.Join(runDirectory, workspacePrefix+"*"), dir); err != nil || !ok {
		return err
	}
	w, err := awaitWorkspace(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(clearMountPoint(path), w.close())
}

// waitedOn tells whether a running spfs serves the mount at p, and somebody may
// use it: it is mounted elsewhere too. It asks that mount nothing. A stub that
// only its workspace shows is one whose tree has ended.
func waitedOn(p string) bool {
	dev, err := control.MountDevice(p)
	if err != nil {
		return false
	}
	c, err := control.Dial(dev)
	if err != nil {
		return false
	}
	c.Close()
	all, err := mounts.List(context.Background())
	if err != nil {
		return true
	}
	places := 0
	for _, ns := range all {
		table, err := ns.Mounts()
		ns.Close()
		if err != nil {
			places = 2 // it may be there
		}
		for _, m := range table {
			if m.Dev == dev {
				places++
			}
		}
	}
	return places > 1
}

// clearMountPoint takes off whatever is mounted on p, and removes p.
func clearMountPoint(p string) error {
	for {
		err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == unix.EINVAL || err == unix.ENOENT: // nothing is mounted, or it is not there
			return removeIfThere(p)
		case err != nil:
			return fmt.Errorf("unmounting %s: %w", p, err)
		}
	}
}

func removeIfThere(p string) error {
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweep tidies the workspaces that other restores left: a tree that waited on
// a stub was swapped since, or it ended.
func sweep() {
	old, err := filepath.Glob(filepath.Join(runDirectory, workspacePrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range old {
		w, err := openWorkspace(path)
		if err != nil {
			continue // in use
		}
		// What cannot be removed now may be the next time; it is not
		// what the user asked for.
		_ = w.close()
	}
}
