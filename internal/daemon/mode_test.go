package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spfs/internal/control"
	"spfs/internal/exit"
)

func TestSetMode(t *testing.T) {
	s := serve(t, "")
	u := start(t, "/", "cat", filepath.Join(s.point, "file"))
	s.awaitHeld(u.cmd.Process.Pid)
	dir := directory(t)
	for _, to := range []string{dir, "", directory(t)} {
		if err := SetMode(background(t), s.point, to, limit); err != nil {
			t.Fatal(err)
		}
		want := control.ModeProxy
		if to == "" {
			want = control.ModeStub
		}
		if got := s.status(); got.Mode != want || to != "" && got.Dir != to {
			t.Errorf("after SetMode to %q: %+v", to, got)
		}
	}
	if err := u.cmd.Wait(); err != nil {
		t.Errorf("who waited: %v", err)
	}
}

// What is not to be leaves the mount as it is, and says with which status.
func TestSetModeRefuses(t *testing.T) {
	dir := directory(t)
	s := serve(t, dir)
	began := s.status().Since
	plain := t.TempDir()
	for _, c := range []struct {
		at, dir string
		timeout time.Duration
		status  int
		says    string
	}{
		{s.point, s.point, 0, exit.Refused, "wait for itself"},
		{s.point, filepath.Join(dir, "file"), 0, exit.Failed, "not a directory"},
		{s.point, dir + "/none", 0, exit.Failed, dir + "/none"},
		{plain, dir, 0, exit.Failed, plain},
		{plain + "/none", dir, 0, exit.Failed, plain + "/none"},
	} {
		err := SetMode(background(t), c.at, c.dir, c.timeout)
		if err == nil {
			t.Errorf("%+v: no error", c)
			continue
		}
		if got := exit.Status(err); got != c.status || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: status %d, %q", c, got, err)
		}
		if got := s.status(); got.Mode != control.ModeProxy || got.Dir != dir || !got.Since.Equal(began) {
			t.Errorf("%+v: the mount is now %+v", c, got)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "content" {
		t.Errorf("the directory's file holds %q, %v", b, err)
	}
}

// A mount whose directory does not answer can't be shut; when the time is up
// it is as it was.
func TestSetModeGivesUp(t *testing.T) {
	dir := directory(t)
	silent := serve(t, dir)
	s := serve(t, silent.point)
	began := s.status().Since
	if err := SetMode(background(t), silent.point, "", limit); err != nil {
		t.Fatal(err)
	}
	u := start(t, "/", "cat", filepath.Join(s.point, "file"))
	silent.awaitRequest()
	err := SetMode(background(t), s.point, "", 50*time.Millisecond)
	if got := exit.Status(err); got != exit.Failed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("status %d, %v", got, err)
	}
	if got := s.status(); got.Mode != control.ModeProxy || !got.Since.Equal(began) {
		t.Errorf("the mount is now %+v", got)
	}
	if err := SetMode(background(t), silent.point, dir, limit); err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Wait(); err != nil {
		t.Errorf("who waited: %v", err)
	}
}
