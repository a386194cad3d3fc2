package daemon

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// However a mount ends, its daemon ends too, and its socket is removed.
func TestEnd(t *testing.T) {
	for name, end := range map[string]func(*served) error{
		"spfs umount":         func(s *served) error { return Umount(background(s.t), s.point, false) },
		"spfs umount --force": func(s *served) error { return Umount(background(s.t), s.point, true) },
		"umount":              func(s *served) error { return unix.Unmount(s.point, unix.UMOUNT_NOFOLLOW) },
		"umount -l":           func(s *served) error { return unix.Unmount(s.point, unix.MNT_DETACH) },
		"SIGTERM":             func(s *served) error { return unix.PidfdSendSignal(s.pidfd, unix.SIGTERM, nil, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, dir := range []string{"", directory(t)} {
				s := serve(t, dir)
				if err := end(s); err != nil {
					t.Fatal(err)
				}
				s.isGone()
			}
		})
	}
}

// A mount in use stays, unless told by force or a signal.
func TestEndWhileInUse(t *testing.T) {
	s := serve(t, directory(t))
	start(t, s.point, "sleep", "1000")
	err := Umount(background(t), s.point, false)
	if err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("unmounted though in use, or without advice: %v", err)
	}
	s.isThere()
	if err := Umount(background(t), s.point, true); err != nil {
		t.Error(err)
	}
	s.isGone()

	s = serve(t, directory(t))
	start(t, s.point, "sleep", "1000")
	s.signal(unix.SIGTERM)
	s.isGone()
}

// Whoever waits when the daemon ends gets an error, and does not wait for ever.
func TestEndWhileSomebodyWaits(t *testing.T) {
	for name, end := range map[string]func(*served){
		"SIGTERM": func(s *served) { s.signal(unix.SIGTERM) },
		"SIGKILL": func(s *served) { s.signal(unix.SIGKILL) },
		"spfs umount --force": func(s *served) {
			if err := Umount(background(s.t), s.point, true); err != nil {
				s.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, "")
			u := start(t, "/", "cat", filepath.Join(s.point, "file"))
			s.awaitHeld(u.cmd.Process.Pid)
			end(s)
			s.awaitEnd()
			if err := u.cmd.Wait(); err == nil || u.cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("who waited ended so: %v, want an error of its own", u.cmd.ProcessState)
			}
		})
	}
}

// The mount of a daemon that was killed, and its socket, go by Umount.
func TestUmountAfterTheDaemonWasKilled(t *testing.T) {
	s := serve(t, "")
	s.signal(unix.SIGKILL)
	s.awaitEnd()
	if at := s.mountedAt(); len(at) != 1 {
		t.Fatalf("mounted at %v, want the place where it was", at)
	}
	if err := Umount(background(t), s.point, false); err != nil {
		t.Error(err)
	}
	s.isGone()
}

// Umount takes the mount away from all places, or from none if at one of them
// something else is on top.
func TestUmountOfSeveralPlaces(t *testing.T) {
	s := serve(t, directory(t))
	one, two := t.TempDir(), t.TempDir()
	for _, at := range []string{one, two} {
		if err := unix.Mount(s.point, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	all := s.mountedAt()
	for _, covered := range []string{one, two} {
		if err := unix.Mount("over", covered, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := Umount(background(t), s.point, false); err == nil || !strings.Contains(err.Error(), covered) {
			t.Errorf("something is mounted over it at %s: %v", covered, err)
		}
		s.isThere()
		if got := s.mountedAt(); !slices.Equal(got, all) {
			t.Errorf("mounted at %v, want %v", got, all)
		}
		if err := unix.Unmount(covered, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Umount(background(t), s.point, false); err != nil {
		t.Error(err)
	}
	s.isGone()
}
