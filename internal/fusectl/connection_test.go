package fusectl

import (
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true" {
		os.Exit(m.Run())
	}
	os.Exit(rig.Contain(func() int {
		defer rig.RemoveBuilt()
		return m.Run()
	}))
}

// served is a file on a bindfs, its daemon, and the number of its file system.
func served(t *testing.T) (file string, daemon *rig.Daemon, dev uint64) {
	t.Helper()
	dir := rig.Dir(t)
	data, at := rig.Mkdir(t, dir, "data"), rig.Mkdir(t, dir, "mnt")
	rig.Write(t, data+"/file", "0123456789")
	daemon = rig.Bindfs(t, data, at)
	m := rig.MountAt(t, 0, at)
	return at + "/file", daemon, unix.Mkdev(uint32(m.Major), uint32(m.Minor))
}

func TestAbortEndsWhatWaits(t *testing.T) {
	file, daemon, dev := served(t)
	c, err := Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waiting := func() int {
		n, err := c.Waiting()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	p := rig.StartPuppet(t)
	fd := p.Open(file, unix.O_RDONLY)
	rig.Await(t, 10*time.Second, func() bool { return waiting() == 0 }, "a request waits, and nobody has made one")
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(daemon.PID, unix.SIGCONT)
	call := p.Start(unix.SYS_PREAD64, fd, make([]byte, 5), 5, 0)
	rig.Await(t, 10*time.Second, func() bool { return waiting() > 0 }, "no request waits, and one was made")
	if err := c.Abort(); err != nil {
		t.Fatal(err)
	}
	if n, err := call.Wait(); !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the call that waited: %d, %v", n, err)
	}
}

func TestUnwrittenIsWhatTheDaemonHasNot(t *testing.T) {
	file, daemon, dev := served(t)
	p := rig.StartPuppet(t)
	fd := p.Open(file, unix.O_RDWR)
	at := p.Mmap(fd, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check := func(want int) {
		t.Helper()
		if u, err := UnwrittenOf(dev); err != nil || u.Files != want {
			t.Errorf("%+v, %v, want %d files", u, err, want)
		}
	}
	check(0)
	p.Load(at, 1)
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(daemon.PID, unix.SIGCONT)
	p.Store(at, []byte("x"))
	check(1)
	if err := unix.Kill(daemon.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.Must(unix.SYS_FSYNC, fd)
	check(0)
}

func TestNoSuchConnection(t *testing.T) {
	const none = 1<<20 - 1
	if c, err := Open(unix.Mkdev(0, none)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, %v", c, err)
	}
	if u, err := UnwrittenOf(unix.Mkdev(0, none)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%+v, %v", u, err)
	}
}
