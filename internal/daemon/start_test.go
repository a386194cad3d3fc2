package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/control"
	"spfs/internal/exit"
)

// When Start returns, the mount is there and its daemon answers.
func TestStartReturnsWhenReady(t *testing.T) {
	for _, c := range []struct{ dir, mode string }{
		{"", control.ModeStub},
		{directory(t), control.ModeProxy},
	} {
		t.Run(c.mode, func(t *testing.T) {
			s := serve(t, c.dir)
			got := s.status()
			if got.Mode != c.mode || got.Dir != c.dir || got.Mountpoint != s.point {
				t.Errorf("status is %+v, want a %s of %q at %s", got, c.mode, c.dir, s.point)
			}
			if at := s.mountedAt(); len(at) != 1 || at[0] != s.point {
				t.Errorf("mounted at %v, want %s", at, s.point)
			}
			if got.PID == os.Getpid() {
				t.Error("the daemon has no process of its own")
			}
			if link, err := os.Readlink("/proc/" + strconv.Itoa(got.PID) + "/cwd"); err != nil || link != "/" {
				t.Errorf("the daemon works in %s (%v), want /", link, err)
			}
			if sid, err := unix.Getsid(got.PID); err != nil || sid != got.PID {
				t.Errorf("the daemon is in session %d (%v), want one of its own", sid, err)
			}
		})
	}
}

// What the daemon could not do arrives as the starter's error, with its status.
func TestStartPassesErrorsOn(t *testing.T) {
	top := t.TempDir()
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	busy := serve(t, "")
	before := len(socketNames(t))
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"serve", top + "/none", ""}, exit.Failed, top + "/none"},
		{[]string{"serve", file, ""}, exit.Failed, "not a directory"},
		{[]string{"serve", top, top + "/none"}, exit.Failed, top + "/none"},
		{[]string{"serve", top, file}, exit.Failed, file},
		{[]string{"serve", busy.point, ""}, exit.Refused, "busy"},
		{[]string{"misuse"}, exit.Misused, "no such word"},
		{[]string{"refuse"}, exit.Refused, "it is taken"},
		{[]string{"die"}, exit.Failed, "exit status 7"},
	} {
		err := Start(c.args...)
		if err == nil {
			t.Errorf("%v: no error", c.args)
			continue
		}
		if got := exit.Status(err); got != c.status {
			t.Errorf("%v: exit status %d, want %d (%v)", c.args, got, c.status, err)
		}
		if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q, want one line with %q", c.args, err, c.says)
		}
		if got := len(socketNames(t)); got != before {
			t.Errorf("%v: %d sockets, want %d", c.args, got, before)
		}
	}
	busy.isThere()
}
