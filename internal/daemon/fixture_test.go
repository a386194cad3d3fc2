package daemon

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"spfs/internal/control"
)

// limit is how long anything may take that does not hang.
const limit = 60 * time.Second

// served is a mount with a daemon in a process of its own.
type served struct {
	t     *testing.T
	point string
	dev   uint64
	pid   int
	pidfd int
}

// serve starts a daemon: a proxy of dir, or a stub if dir is "".
func serve(t *testing.T, dir string) *served {
	t.Helper()
	s := &served{t: t, point: t.TempDir()}
	if err := Start("serve", s.point, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(s.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	var err error
	if s.dev, err = control.MountDevice(s.point); err != nil {
		t.Fatal(err)
	}
	s.pid = s.status().PID
	if s.pidfd, err = unix.PidfdOpen(s.pid, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		s.awaitEnd()
		unix.Close(s.pidfd)
		if err := control.RemoveStale(s.dev); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *served) status() *control.Status {
	s.t.Helper()
	all, err := control.StatusOf(background(s.t), s.point)
	if err != nil {
		s.t.Fatal(err)
	}
	return all[0]
}

func (s *served) signal(sig unix.Signal) {
	s.t.Helper()
	if err := unix.PidfdSendSignal(s.pidfd, sig, nil, 0); err != nil {
		s.t.Fatal(err)
	}
}

// awaitEnd waits for the daemon's process to end.
func (s *served) awaitEnd() {
	s.t.Helper()
	fds := []unix.PollFd{{Fd: int32(s.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(limit.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			s.t.Fatalf("the daemon of %s (%d) does not end: %v", s.point, s.pid, err)
		}
		return
	}
}

// isGone checks that the daemon ends, and that neither its socket nor its
// mount is left.
func (s *served) isGone() {
	s.t.Helper()
	s.awaitEnd()
	if left := socketNames(s.t); len(left) != 0 {
		s.t.Errorf("the daemon of %s left %v", s.point, left)
	}
	if at := s.mountedAt(); len(at) != 0 {
		s.t.Errorf("still mounted at %v", at)
	}
}

// isThere checks that the mount is served.
func (s *served) isThere() {
	s.t.Helper()
	if got := s.status().PID; got != s.pid {
		s.t.Errorf("%s is served by %d, want %d", s.point, got, s.pid)
	}
}

// mountedAt lists where the file system is mounted.
func (s *served) mountedAt() (points []string) {
	s.t.Helper()
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range all {
		if unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == s.dev {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// socketNames lists what is in the directory of control sockets.
func socketNames(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(sockets)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// user is a process that uses a mount.
type user struct{ cmd *exec.Cmd }

// start runs a command in a directory, until it ends or the test does.
func start(t *testing.T, dir string, command ...string) *user {
	t.Helper()
	u := &user{exec.Command(command[0], command[1:]...)}
	u.cmd.Dir = dir
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.end)
	return u
}

// end kills the process, unless it has ended, and waits for it.
func (u *user) end() {
	u.cmd.Process.Kill()
	u.cmd.Wait()
}

// awaitHeld waits until a process waits in the mount.
func (s *served) awaitHeld(pid int) {
	s.t.Helper()
	s.awaitRequest(func(h control.Held) bool { return h.PID == pid })
}

// awaitRequest waits until a request is held, one that is wanted if it matters.
func (s *served) awaitRequest(wanted ...func(control.Held) bool) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		held := s.status().Held
		for _, h := range held {
			if len(wanted) == 0 || wanted[0](h) {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("none of the requests held is the one: %+v", held)
		}
	}
}

// directory makes a directory with a file in it, for a proxy.
func directory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}
