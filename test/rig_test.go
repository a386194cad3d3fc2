package test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// The rig itself: a counter finds no fault on a mount that nothing happens to,
// and finds the faults that are made.
func TestCounterOnEachDaemon(t *testing.T) {
	for name, serve := range map[string]func(rig.T, string, string){
		"bindfs":   func(t rig.T, dir, at string) { rig.Bindfs(t, dir, at) },
		"sshfs":    func(t rig.T, dir, at string) { rig.StartSSH(t).Sshfs(t, dir, at) },
		"loopback": func(t rig.T, dir, at string) { rig.Loopback(t, dir, at) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := rig.Dir(t)
			data, mnt := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
			serve(t, data, mnt)
			c := rig.StartCounter(t, mnt, rig.CounterOptions{FDs: 5, Threads: 1, Children: 1})
			c.CountsOn(500)
			c.ForgetPauses()
			c.Check()
			if n := c.End(data); n == 0 {
				t.Error("nothing was written")
			}
		})
	}
}

func TestCounterInContainer(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 3, Children: 1}, mnt[0]+":/mnt")
	c.Counter.CountsOn(100)
	c.Counter.Check()
	c.Counter.End(data)
}

func TestPuppetDoesAsAsked(t *testing.T) {
	dir := rig.Dir(t)
	rig.Write(t, dir+"/f", "content")
	p := rig.StartPuppet(t)
	fd := p.Open(dir+"/f", unix.O_RDWR)
	child := p.Spawn(int(unix.SIGCHLD))
	thread := p.Spawn(unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM)
	if got := child.Read(fd, 3); got != "con" {
		t.Errorf("read by the child: %q", got)
	}
	if got := thread.Read(fd, 9); got != "tent" {
		t.Errorf("read by the thread after the child: %q", got)
	}
	if !rig.SameDescription(t, p, fd, child, fd) {
		t.Error("fork does not share the description")
	}
	if _, err := p.Call(unix.SYS_OPENAT, unix.AT_FDCWD, dir+"/none", 0, 0); err != unix.ENOENT {
		t.Errorf("open of a missing file: %v", err)
	}
	addr := p.Mmap(fd, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	p.Store(addr+1, []byte("O"))
	if got := string(p.Load(addr, 7)); got != "cOntent" {
		t.Errorf("private mapping holds %q", got)
	}
	if got := p.Fstat(fd).Size; got != 7 {
		t.Errorf("fstat: size %d", got)
	}
}

func TestCounterFindsFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(t *testing.T, data string)
		found func(w *rig.Worker) bool
	}{
		{"a byte of the log changed", func(t *testing.T, data string) {
			overwrite(t, data+"/log.0", 100)
		}, func(w *rig.Worker) bool { return w.Wrong() == 1 }},
		{"a byte of an extra file changed", func(t *testing.T, data string) {
			overwrite(t, data+"/extra.0.0", 5)
		}, func(w *rig.Worker) bool { return w.Wrong() >= 1 }},
		{"a file missing in the cwd", func(t *testing.T, data string) {
			if err := os.Remove(data + "/here.0"); err != nil {
				t.Fatal(err)
			}
		}, func(w *rig.Worker) bool { return w.Failed() >= 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := rig.Dir(t)
			counter := rig.StartCounter(t, dir, rig.CounterOptions{FDs: 1})
			counter.CountsOn(100)
			if w := counter.Workers[0]; w.Wrong() != 0 || w.Failed() != 0 {
				t.Fatalf("before: %d bytes wrong, %d calls failed", w.Wrong(), w.Failed())
			}
			c.fault(t, dir)
			counter.Reread()
			if w := counter.Workers[0]; !c.found(w) {
				t.Errorf("not found: %d bytes wrong, %d calls failed", w.Wrong(), w.Failed())
			}
		})
	}
}

func overwrite(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^b[0]}, at); err != nil {
		t.Fatal(err)
	}
}

// The fence: whatever a program leaves, it is named, and its success is none.
func TestFenceFindsWhatIsLeft(t *testing.T) {
	for _, c := range []struct {
		name, script string
		status       int
		left         []string
	}{
		{"nothing", "exit 0", 0, nil},
		{"its own failure", "exit 7", 7, nil},
		{"a process", "sleep 1000 & exit 0", 1, []string{"sleep 1000", "state S"}},
		{"a stopped process", "sleep 1001 & kill -STOP $!; exit 0", 1, []string{"sleep 1001", "state T"}},
		{"an orphan in a session of its own", "(setsid sleep 1002 &) ; exit 0", 1, []string{"sleep 1002"}},
		{"a file", "touch $TMPDIR/forgotten", 1, []string{"forgotten"}},
		{"a socket", "touch /run/spfs/0:9.sock", 1, []string{"/run/spfs/0:9.sock"}},
		{"a mount", "mkdir $TMPDIR/m && bindfs / $TMPDIR/m", 1, []string{"mount of fuse", "/m", "bindfs /"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.Run(t, rig.Build(t).Contained, "sh", "-c", c.script)
			if r.Status != c.status {
				t.Errorf("exit status %d, want %d\n%s", r.Status, c.status, r.Stderr)
			}
			if c.left == nil && r.Stderr != "" {
				t.Errorf("said: %s", r.Stderr)
			}
			for _, l := range c.left {
				if !strings.Contains(r.Stderr, l) {
					t.Errorf("does not name %q:\n%s", l, r.Stderr)
				}
			}
		})
	}
}
