package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"spfs/internal/control"
	"spfs/internal/exit"
	"spfs/internal/fusedev"
	"spfs/internal/privilege"
	"spfs/proxyfs"
	"spfs/stubfs"
)

// Options say what to mount.
type Options struct {
	Mountpoint string // a directory
	Dir        string // the directory to be a proxy of, or "" to begin as a stub

	// Positions are directory positions that its users have from another
	// file system; see proxyfs.Options.
	Positions map[string]map[uint64]string
}

// maxThreads is far above what the gate lets run at once; the Go runtime ends
// the program at 10,000, which is no way to end a file system.
const maxThreads = 1 << 16

// grace is how long Run waits in the end: for requests that the directory
// does not answer, or for a connection to end that others still use.
const grace = time.Second

// Run mounts and serves. It calls ready when the mount is there and answers,
// and returns when the connection has ended, or after it has unmounted
// because ctx ended.
func Run(ctx context.Context, o Options, ready func()) error {
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	debug.SetMaxThreads(maxThreads)
	at, err := openMountpoint(o.Mountpoint)
	if err != nil {
		return err
	}
	defer at.Close()
	var dir *os.File
	if o.Dir != "" {
		// Before anything is mounted: it may be the mount point itself.
		if dir, err = OpenDir(o.Dir); err != nil {
			return err
		}
		defer dir.Close()
	}

	conn, mount, err := fusedev.Mount("spfs")
	if err != nil {
		return err
	}
	m := &mounted{
		conn:  conn,
		since: time.Now(),
		point: fdPath(at),
		stop:  make(chan struct{}),
		fs: stubfs.New(conn, stubfs.Kind{
			New:       o.newProxy,
			Configure: proxyfs.Configure,
		}),
	}
	served := make(chan error, 1)
	go func() { served <- m.fs.Serve() }()

	if err := m.bringUp(ctx, mount, at, dir, ready); err != nil {
		return errors.Join(err, m.end(served))
	}
	return m.end(served)
}

func (o Options) newProxy(dir *os.File) (stubfs.Target, error) {
	return proxyfs.New(dir, proxyfs.Options{Positions: o.Positions})
}

// bringUp attaches the mount, and waits until it or ctx ends. Afterwards
// nothing holds the mount but its users.
func (m *mounted) bringUp(ctx context.Context, mount *fusedev.Detached, at, dir *os.File, ready func()) error {
	attached := false
	defer func() {
		if !attached {
			mount.Close()
		}
	}()
	if dir != nil {
		if err := m.Proxy(ctx, dir); err != nil {
			return err
		}
	}
	l, err := control.Listen(m.conn.Dev(), m)
	if err != nil {
		return err
	}
	go func() {
		if err := l.Serve(); err != nil {
			slog.Error("the control socket is lost", "error", err)
		}
	}()
	defer func() {
		if err := l.Close(); err != nil {
			slog.Error("closing the control socket", "error", err)
		}
	}()
	if err := mount.Attach(at); err != nil {
		return err
	}
	attached = true
	// A reference of ours would keep the mount busy.
	mount.Close()
	at.Close()
	if err := os.Chdir("/"); err != nil {
		return errors.Join(fmt.Errorf("chdir to /: %w", err), m.unmountAll())
	}
	ready()
	select {
	case <-m.conn.Ended():
		return nil
	case <-m.stop:
		return nil
	case <-ctx.Done():
		return m.unmountAll()
	}
}

// end waits for what still runs, and gives the connection back.
func (m *mounted) end(served <-chan error) error {
	select {
	case err := <-served:
		return errors.Join(err, m.conn.Close())
	case <-time.After(grace):
		return nil // the end of the process closes the connection
	}
}

// openMountpoint opens a directory that something may be mounted on.
func openMountpoint(path string) (*os.File, error) {
	// Whatever is mounted here already is not asked anything before it is
	// known not to be FUSE, which may not answer.
	f, err := control.OpenPath(path)
	if err != nil {
		return nil, fmt.Errorf("mount point: %w", err)
	}
	if err := checkMountpoint(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkMountpoint(f *os.File) error {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return fmt.Errorf("mount point %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("mount point %s: %w", f.Name(), unix.ENOTDIR)
	}
	m, err := control.MountOf(f)
	switch {
	case errors.Is(err, control.ErrNotMountpoint):
		return nil
	case err != nil:
		return err
	case isFUSE(m):
		return exit.Refuse(fmt.Errorf("%s is busy: a %s is mounted there", f.Name(), m.FSType))
	}
	return nil
}

func isFUSE(m *mountinfo.Info) bool {
	return m.FSType == "fuse" || m.FSType == "fuseblk" ||
		len(m.FSType) > 5 && m.FSType[:5] == "fuse."
}

// OpenDir opens a directory for reference (O_PATH).
func OpenDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fdPath is the path of an open file in this process's view.
func fdPath(f *os.File) string {
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return f.Name()
	}
	return p
}
