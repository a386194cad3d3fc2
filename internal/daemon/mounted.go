package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"spfs/internal/control"
	"spfs/internal/fusedev"
	"spfs/stubfs"
)

// mounted is the mount that is served. It is the control socket's handler.
type mounted struct {
	conn  *fusedev.Conn
	fs    *stubfs.FS
	point string
	stop  chan struct{} // closed when nobody is to be served any longer

	mu    sync.Mutex
	dir   string
	since time.Time
	ended bool // stop is closed
}

func (m *mounted) Status() *control.Status {
	m.mu.Lock()
	s := &control.Status{
		Mode:       control.ModeStub,
		Dir:        m.dir,
		Mountpoint: m.point,
		Device:     fmt.Sprintf("%d:%d", unix.Major(m.conn.Dev()), unix.Minor(m.conn.Dev())),
		PID:        os.Getpid(),
		Since:      m.since,
		Held:       []control.Held{},
	}
	m.mu.Unlock()
	if m.fs.IsOpen() {
		s.Mode = control.ModeProxy
	}
	for _, h := range m.fs.Held() {
		s.Held = append(s.Held, control.Held(h))
	}
	return s
}

func (m *mounted) Stub(ctx context.Context) error {
	wasOpen := m.fs.IsOpen()
	if err := m.fs.Shut(ctx); err != nil {
		return err
	}
	if wasOpen {
		m.changed("")
	}
	return nil
}

func (m *mounted) Proxy(ctx context.Context, dir *os.File) error {
	path := fdPath(dir)
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return fmt.Errorf("directory %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return control.Refuse("%s is not a directory", path)
	}
	if unix.Mkdev(st.Dev_major, st.Dev_minor) == m.conn.Dev() {
		return control.Refuse("%s is on the mount itself, which would wait for itself", path)
	}
	if err := m.fs.Open(ctx, dir); err != nil {
		return err
	}
	m.changed(path)
	return nil
}

// Deleted makes a file one that is deleted while it is open.
func (m *mounted) Deleted(ctx context.Context, path string, file *os.File, open []*os.File) error {
	if err := m.fs.Deleted(ctx, path, file, open); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// changed takes note of a new mode, and of its directory if it has one.
func (m *mounted) changed(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since = time.Now()
	if dir != "" {
		m.dir = dir
	}
}

func (m *mounted) Umount(_ context.Context, force bool) error {
	if !force {
		return m.unmount(0)
	}
	if err := m.unmountAll(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ended {
		m.ended = true
		close(m.stop)
	}
	return nil
}

// unmountAll takes the mount away from every place in this mount namespace,
// in use or not.
func (m *mounted) unmountAll() error { return m.unmount(unix.MNT_DETACH) }

func (m *mounted) unmount(flags int) error {
	points, err := m.points()
	if err != nil {
		return err
	}
	if len(points) == 0 && flags == 0 {
		return fmt.Errorf("%s is not mounted here any more, but still in use", m.point)
	}
	for _, p := range points {
		// A path says which mount only if nothing else is on top.
		dev, err := control.MountDevice(p)
		if err != nil {
			return err
		}
		if dev != m.conn.Dev() {
			return fmt.Errorf("unmounting %s: something else is mounted over it", p)
		}
	}
	for _, p := range points {
		err := unix.Unmount(p, flags|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmounting %s: %w (processes use it; --force takes it away from them)", p, err)
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", p, err)
		}
	}
	return nil
}

// points lists where the mount is mounted in this namespace, the latest first.
func (m *mounted) points() ([]string, error) {
	all, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return unix.Mkdev(uint32(i.Major), uint32(i.Minor)) != m.conn.Dev(), false
	})
	if err != nil {
		return nil, fmt.Errorf("reading mountinfo: %w", err)
	}
	var points []string
	for i := len(all) - 1; i >= 0; i-- {
		points = append(points, all[i].Mountpoint)
	}
	return points, nil
}
