package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/fusectl"
	"spfs/internal/fusedev"
	"spfs/test/rig"
)

// deviceOf is "PID:FD" of a daemon's /dev/fuse, once it has one.
func deviceOf(t *testing.T, pid int) (name string) {
	t.Helper()
	rig.Await(t, 20*time.Second, func() bool {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if to, _ := os.Readlink(link); to == "/dev/fuse" {
				name = fmt.Sprintf("%d:%s", pid, filepath.Base(link))
				return true
			}
		}
		return false
	}, "process %d has /dev/fuse open", pid)
	return name
}

// begun starts a daemon with a /dev/fuse that is mounted nowhere.
func begun(t *testing.T, dir, how string) (daemon *rig.Running, device string) {
	t.Helper()
	daemon = rig.Begin(t, exec.Command(rig.Build(t).Loopback, dir, how))
	t.Cleanup(func() { rig.Kill(t, daemon.PID) })
	return daemon, deviceOf(t, daemon.PID)
}

// A daemon whose connection was never mounted, and that has had its INIT long
// ago, gets the clients of another mount. It is of an older version of the
// protocol, and meets nothing newer.
func TestSwapToAFuseDevice(t *testing.T) {
	t.Parallel()
	data, mnt := rig.Served(t, "mnt")
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("name%d", i)
		rig.Write(t, filepath.Join(data, names[i]), "")
	}
	old := devAt(t, 0, mnt[0])
	counter := rig.StartCounter(t, mnt[0], rig.CounterOptions{FDs: 3, Threads: 1, Children: 1})
	daemon, device := begun(t, data, "-")
	swapTo := func(flags ...string) rig.Result {
		t.Helper()
		return rig.Run(t, rig.Build(t).Swap, append([]string{"run", "--from", mnt[0], "--to-fuse", device}, flags...)...)
	}

	// What can't be had does not cost the daemon its connection.
	for _, flags := range []string{"--init=async_reed", "--init=max_write=1"} {
		swapTo(flags).Fails(t, 2, "--init")
	}
	swapTo("--init=map_alignment").Fails(t, 3, "map_alignment")
	swapTo().OK(t)

	now := rig.MountAt(t, 0, mnt[0])
	if now == nil || unix.Mkdev(uint32(now.Major), uint32(now.Minor)) == old || now.Source != "loopback" {
		t.Errorf("at %s is %+v, want what process %d serves", mnt[0], now, daemon.PID)
	}
	if left, _ := filepath.Glob("/run/spfs/fuse-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// The kernel forgets many files at once.
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(mnt[0], name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", mnt[0], "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	counter.CountsOn(50)
	counter.Check()
	counter.End(data)
}

// A daemon that has had no INIT yet answers it itself.
func TestSwapToAFuseDeviceBeforeINIT(t *testing.T) {
	t.Parallel()
	data, mnt := rig.Served(t, "mnt")
	counter := rig.StartCounter(t, mnt[0], rig.CounterOptions{FDs: 3, Threads: 1, Children: 1})
	_, device := begun(t, data, "fresh")
	rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to-fuse", device, "--init", "daemon").OK(t)
	if now := rig.MountAt(t, 0, mnt[0]); now == nil || now.Source != "loopback" {
		t.Errorf("at %s is %+v, want what the daemon serves", mnt[0], now)
	}
	counter.CountsOn(50)
	counter.Check()
	counter.End(data)
}

// A connection that is mounted, or was and is alive only since somebody uses it,
// is mounted once more.
func TestSwapToADeviceThatIsMounted(t *testing.T) {
	for name, detached := range map[string]bool{"mounted": false, "detached": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data, mnt := rig.Served(t, "mnt", "other")
			counter := rig.StartCounter(t, mnt[0], rig.CounterOptions{FDs: 3, Threads: 1, Children: 1})
			other := devAt(t, 0, mnt[1])
			var daemon int
			for _, pid := range rig.Tree(os.Getpid()) {
				fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
				for _, fd := range fds {
					if b, _ := os.ReadFile(fd); strings.Contains(string(b), fmt.Sprintf("fuse_connection:\t%d\n", unix.Minor(other))) {
						daemon = pid
					}
				}
			}
			if daemon == 0 {
				t.Fatalf("nobody serves %s", devName(other))
			}
			device := deviceOf(t, daemon)
			if detached {
				user, err := os.Open(mnt[1])
				if err != nil {
					t.Fatal(err)
				}
				defer user.Close()
				rig.Unmount(t, mnt[1])
				if at := rig.MountsOf(t, other); len(at) > 0 {
					t.Fatalf("it is still mounted at %v", at)
				}
			}

			// INIT is over, whatever is said of it.
			rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to-fuse", device, "--init", "map_alignment").OK(t)
			if now := devAt(t, 0, mnt[0]); now != other {
				t.Errorf("at %s is %s, want %s", mnt[0], devName(now), devName(other))
			}
			if !detached && devAt(t, 0, mnt[1]) != other {
				t.Errorf("at %s is %s, want %s still", mnt[1], devName(devAt(t, 0, mnt[1])), devName(other))
			}
			counter.CountsOn(50)
			counter.Check()
			counter.End(data)
		})
	}
}

// A device of which nothing can be mounted is refused, and nothing is changed.
func TestSwapToAFuseDeviceThatIsNone(t *testing.T) {
	t.Parallel()
	_, mnt := rig.Served(t, "mnt")
	old := devAt(t, 0, mnt[0])
	empty := rig.Mkdir(t, rig.Dir(t), "empty")
	daemon, device := begun(t, empty, "-")

	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	conn, mount, err := fusedev.Mount("spfs")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	aborted, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer aborted.Close()
	control, err := fusectl.Open(conn.Dev())
	if err == nil {
		err = errors.Join(control.Abort(), control.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := fmt.Sprintf("%d:%d", os.Getpid(), aborted.Fd())

	for _, one := range []struct {
		args   string
		status int
		says   string
	}{
		{"--to-fuse " + device + " --to " + mnt[0], 2, "exclude"},
		{"--to-fuse " + device + " --mount bindfs%m", 2, "exclude"},
		{"--to " + mnt[0] + " --init big_writes", 2, "--to-fuse"},
		{"--to-fuse " + itoa(daemon.PID), 2, "PID:FD"},
		{fmt.Sprintf("--to-fuse %d:0", daemon.PID), 1, "no /dev/fuse"},
		{fmt.Sprintf("--to-fuse %d:9999", daemon.PID), 1, "bad file descriptor"},
		{fmt.Sprintf("--to-fuse %d:0", gone.Process.Pid), 1, "no such process"},
		{"--to-fuse " + ended, 1, "has ended"},
	} {
		rig.Run(t, rig.Build(t).Swap, append([]string{"run", "--from", mnt[0]}, strings.Fields(one.args)...)...).Fails(t, one.status, one.says)
	}
	// Its superblock is gone, too.
	if err := mount.Close(); err != nil {
		t.Fatal(err)
	}
	rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to-fuse", ended).Fails(t, 1, "has ended")
	if now := devAt(t, 0, mnt[0]); now != old {
		t.Errorf("at %s is %s, was %s", mnt[0], devName(now), devName(old))
	}
}

// Something in the way leaves a connection that was mounted for the swap where
// it can be used.
func TestSwapToAFuseDeviceThatIsRefused(t *testing.T) {
	_, mnt := rig.Served(t, "mnt")
	old := devAt(t, 0, mnt[0])
	p := rig.StartPuppet(t)
	fd := p.Open(mnt[0]+"/file", unix.O_RDWR|unix.O_CREAT)
	empty := rig.Mkdir(t, rig.Dir(t), "empty")
	_, device := begun(t, empty, "-")

	r := rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to-fuse", device)
	if r.Status != 3 || !strings.Contains(r.Stderr, "missing on --to") {
		t.Fatalf("exit status %d, want 3:\n%s", r.Status, r.Stderr)
	}
	_, at, _ := strings.Cut(r.Stderr, "mounted at ")
	at, _, _ = strings.Cut(at, " ")
	if now := rig.MountAt(t, 0, at); now == nil || now.FSType != "fuse" {
		t.Fatalf("at %q is %+v, want the connection:\n%s", at, now, r.Stderr)
	}
	rig.Write(t, filepath.Join(empty, "file"), "")
	rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to", at, "--move").OK(t)
	if got, want := p.Fstat(fd).Dev, devAt(t, 0, mnt[0]); got != want || got == old {
		t.Errorf("the file is on %s, want what is mounted, %s, which was %s", devName(got), devName(want), devName(old))
	}
	// Whoever stages something next tidies up.
	rig.Run(t, rig.Build(t).Swap, "run", "--from", mnt[0], "--to-fuse", device).Fails(t, 2, "same file system")
	if left, _ := filepath.Glob("/run/spfs/fuse-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
