package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// patience is how long a server may need for what takes it moments: the machine may
// have other things to do.
const patience = 5 * time.Minute

// site is where a server is at work, and as whom.
type site struct {
	mount string // a FUSE mount, with its data and logs
	data  string // the same directory without FUSE
	own   string // for what servers don't keep with their data: sockets, pid files
	cred  *syscall.Credential
}

// server is a program at work on a site.
type server interface {
	// acknowledged is how much of its load is done so far. It fails t if any failed.
	acknowledged(t rig.T) int64
	// finish ends the load and the server, and looks that all is there and whole.
	finish(t rig.T)
}

// served returns a part: a server run by that user, swapped from bindfs to go-fuse's
// loopback and back.
func served(account string, start func(rig.T, *site) server) func(rig.T) {
	return func(t rig.T) {
		began := time.Now()
		top := rig.Dir(t)
		rig.Public(t, top)
		s := &site{mount: rig.Mkdir(t, top, "mnt"), data: rig.Mkdir(t, top, "data"), own: rig.Mkdir(t, top, "own"), cred: credential(t, account)}
		next := rig.Mkdir(t, top, "next")
		for _, dir := range []string{s.data, s.own} {
			if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
				t.Fatalf("%v", err)
			}
		}
		kinds := []func(rig.T, string, string) *rig.Daemon{
			func(t rig.T, dir, at string) *rig.Daemon { return rig.Bindfs(t, dir, at) }, rig.Loopback,
		}
		daemon := kinds[0](t, s.data, s.mount)
		x := start(t, s)

		var stopped, longest time.Duration
		var moved report
		for i := range *swaps {
			goesOn(t, x, 20)
			old := daemon
			daemon = kinds[(i+1)%2](t, s.data, next)
			var r report
			run := exec.Command(rig.Build(t).Swap, "run", "--json", "--from", s.mount, "--to", next, "--move", "--timeout", patience.String())
			if err := json.Unmarshal([]byte(succeeds(t, run)), &r); err != nil {
				t.Fatalf("swap %d: %v", i+1, err)
			}
			if r.Processes == 0 {
				t.Fatalf("swap %d: nobody was swapped", i+1)
			}
			moved.Processes += r.Processes
			moved.FDs += r.FDs
			moved.Mappings += r.Mappings
			d := time.Duration(r.StoppedUS) * time.Microsecond
			stopped += d
			longest = max(longest, d)
			// It ends when nobody has anything of its file system any more.
			select {
			case <-old.Ended():
			case <-time.After(patience):
				t.Fatalf("swap %d: %v later somebody still uses the file system that was left: %s", i+1, patience, users(old))
			}
			if (i+1)%10 == 0 {
				fmt.Printf("%d swaps: stopped %v on average, %v at most; %d pieces of work done\n",
					i+1, (stopped / time.Duration(i+1)).Round(time.Microsecond), longest, x.acknowledged(t))
			}
		}
		goesOn(t, x, 20)
		done := x.acknowledged(t)
		x.finish(t)
		daemon.Mountpoint = s.mount
		daemon.Unmount()
		fmt.Printf("%d swaps in %v, of %d processes, %d descriptors and %d mappings in all; %d pieces of work acknowledged and there, no error\n",
			*swaps, time.Since(began).Round(time.Second), moved.Processes, moved.FDs, moved.Mappings, done)
	}
}

// report is what is read of what spfs-swap run prints.
type report struct {
	Processes int   `json:"processes"`
	FDs       int   `json:"fds"`
	Mappings  int   `json:"mappings"`
	StoppedUS int64 `json:"stopped_us"`
}

// goesOn waits until a server has done some more.
func goesOn(t rig.T, x server, n int64) {
	t.Helper()
	want := x.acknowledged(t) + n
	rig.Await(t, patience, func() bool { return x.acknowledged(t) >= want }, "the server does %d more", n)
}

// users is what lsof would say of a daemon's file system.
func users(d *rig.Daemon) string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && strings.HasPrefix(to, filepath.Dir(d.Mountpoint)) {
			found = append(found, l+" is "+to)
		}
	}
	return fmt.Sprintf("daemon %d; open beneath it: %v", d.PID, found)
}

// credential is whom a server runs as.
func credential(t rig.T, account string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(account)
	if err != nil {
		t.Fatalf("%v: run \"make soak\", or \"sh hack/deps.sh soak\"", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("user %s has uid %q and gid %q", account, u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// command is one that the site's user runs, in a session of its own.
func (s *site) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.own
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=" + s.own, "TMPDIR=" + s.own}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true}
	return cmd
}

// daemon starts a command that stays, in a mount namespace of its own.
func (s *site) daemon(t rig.T, cmd *exec.Cmd) *rig.Running {
	t.Helper()
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	return rig.Begin(t, cmd)
}

// succeeds runs a command to its end, and returns what it printed.
func succeeds(t rig.T, cmd *exec.Cmd) string {
	t.Helper()
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out.String(), said.String())
	}
	return out.String()
}

// comesUp waits until a server that was started serves. It fails t if it ends.
func comesUp(t rig.T, server *rig.Running, serves func() bool) {
	t.Helper()
	rig.Await(t, patience, func() bool {
		select {
		case <-server.Ended():
			r := server.Wait(t)
			t.Fatalf("%s ended, with status %d: %s%s", r.Line(), r.Status, r.Stdout, r.Stderr)
		default:
		}
		return serves()
	}, "the server comes up")
}

// dir makes a directory of the site's user with the data.
func (s *site) dir(t rig.T, name string, mode os.FileMode) {
	t.Helper()
	path := rig.Mkdir(t, s.data, name)
	if err := os.Chmod(path, mode); err != nil {
		t.Fatalf("%v", err)
	}
	if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
		t.Fatalf("%v", err)
	}
}

// end sends a server a signal and waits for its end.
func end(t rig.T, r *rig.Running, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(r.PID, s); err != nil {
		t.Fatalf("signal %v to process %d: %v", s, r.PID, err)
	}
	select {
	case <-r.Ended():
	case <-time.After(patience):
		t.Fatalf("%v after signal %v, process %d has not ended:%s", patience, s, r.PID, rig.KernelStack(r.PID))
	}
}

// silent fails t if a line of a log matches bad. It returns the lines.
func silent(t rig.T, path string, bad *regexp.Regexp) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for _, l := range lines {
		if bad.MatchString(l) {
			t.Errorf("%s: %s", filepath.Base(path), l)
		}
	}
	return lines
}
