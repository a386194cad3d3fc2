// Command demo shows the main job, step by step: a process outlives its FUSE
// mount, through a checkpoint and back; and then one that has its FUSE daemon in
// the same container. It is behind "make demo", and ends with
// status 0 only if everything that it says has held.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"spfs/test/rig"
)

func main() {
	os.Exit(rig.Program("demo", func(t rig.T) {
		t.Cleanup(rig.RemoveBuilt)
		d := &demo{t: t, began: time.Now()}
		d.run()
		d.pod()
	}))
}

// demo is the story under way.
type demo struct {
	t         rig.T
	began     time.Time
	top, data string
}

// say prints a line, with the seconds since the beginning.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("%6.2f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// more prints a line that belongs to the one before.
func (d *demo) more(format string, args ...any) {
	fmt.Printf("          %s\n", fmt.Sprintf(format, args...))
}

func (d *demo) run() {
	t := d.t
	programs := rig.Build(t)
	d.began = time.Now()
	d.top = rig.Dir(t)
	d.data = rig.Mkdir(t, d.top, "data")
	mnt := rig.Mkdir(t, d.top, "mnt")

	bindfs := rig.Bindfs(t, d.data, mnt)
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 3}, mnt+":/mnt")
	w := c.Counter.Workers[0]
	c.Counter.CountsOn(500)
	d.say("A container (own root, own mount and pid namespace) has bindfs at /mnt, and a client there:")
	d.more("process %d: a file it appends to, another it reads, a shared and a private mapping", c.PID)
	d.more("with dirty pages, its working directory. It counts without a pause: %d by now.", w.Count())

	images := rig.Mkdir(t, d.top, "images")
	dumped := rig.SPFS(t, "dump", "--tree", fmt.Sprint(c.PID), "--images-dir", images, "--criu", programs.CRIU).OK(t)
	if rig.Alive(c.PID) {
		t.Fatalf("after the dump the client still runs")
	}
	at := w.Count()
	d.say("spfs dump: checkpointed with CRIU in %v, %d KiB. The client is gone; it had counted to %d.", ms(dumped.Took), size(images)>>10, at)

	rig.Unmount(t, mnt)
	bindfs.Kill()
	d.say("bindfs is killed too, and its mount taken away: nothing is left but the images.")

	restored := rig.SPFS(t, "restore", "--images-dir", images, "--detach", "--criu", programs.CRIU, "--", "--root", c.Root).OK(t)
	c.Restored()
	d.say("spfs restore: the client is back in %v, as process %d, with a stub at /mnt.", ms(restored.Took), c.PID)

	stub := d.waits(c.PID)
	if stub.Mode != "stub" {
		t.Fatalf("what is at /mnt is a %s", stub.Mode)
	}
	c.Counter.Stands(300 * time.Millisecond)
	if n := w.Count(); n > at+1 {
		t.Errorf("the client counted from %d to %d though it has no file system", at, n)
	}
	h := stub.Held[0]
	d.say("It waits, and sees no error. spfs status:")
	d.more("process %d (%s) waits for %s of %s, since %v", h.PID, h.Comm, h.Op, h.Path, ms(time.Since(h.Since)))

	again := rig.Mkdir(t, d.top, "again")
	d.say("A new bindfs starts, of the same directory.")
	rig.Bindfs(t, d.data, again)

	var r struct {
		FDs       int   `json:"fds"`
		Mappings  int   `json:"mappings"`
		Cwds      int   `json:"cwds"`
		StoppedUS int64 `json:"stopped_us"`
	}
	rig.Run(t, programs.Swap, "run", "--json", "--from", stub.Mountpoint, "--to", again).OK(t).JSON(t, &r)
	d.say("spfs-swap run: %d descriptors, %d mappings, %d working directory given to it, stopped for %v.",
		r.FDs, r.Mappings, r.Cwds, ms(time.Duration(r.StoppedUS)*time.Microsecond))

	c.Counter.CountsOn(500)
	d.say("The client counts on: %d by now.", w.Count())
	d.check(c, stub, again)
}

// waits finds the stub in which pid waits.
func (d *demo) waits(pid int) (stub rig.Status) {
	rig.Await(d.t, 10*time.Second, func() bool {
		for _, s := range rig.Statuses(d.t) {
			for i, h := range s.Held {
				if h.PID == pid {
					s.Held = s.Held[i:]
					stub = s
					return true
				}
			}
		}
		return false
	}, "spfs status tells that process %d waits", pid)
	return stub
}

// check does what the last lines say.
func (d *demo) check(c *rig.Container, stub rig.Status, again string) {
	t := d.t
	c.Counter.Check()
	inside, outside := rig.MountAt(t, c.PID, "/mnt"), rig.MountAt(t, 0, again)
	if inside == nil || inside.Major != outside.Major || inside.Minor != outside.Minor {
		t.Errorf("at /mnt in the container is %+v, not the new bindfs", inside)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.PID)); err != nil || cwd != "/mnt" {
		t.Errorf("the client's working directory is %s (%v), not /mnt", cwd, err)
	}
	rig.Await(t, 10*time.Second, func() bool { return !rig.Alive(stub.PID) }, "the end of the stub")
	counts := c.Counter.Count()
	bytes := c.Counter.End(d.data)

	if _, err := os.Lstat(filepath.Dir(stub.Mountpoint)); !os.IsNotExist(err) {
		t.Errorf("the stub has ended, and %s is there still (%v)", filepath.Dir(stub.Mountpoint), err)
	}
	if t.Failed() {
		return
	}
	d.say("Checked: %d counts, each written and read back by descriptor and by mapping; no call failed;", counts)
	d.more("every byte is in the directory (%d bytes compared); the private pages kept what was written;", bytes)
	d.more("/mnt in the container is the new bindfs, and the client's working directory; the stub is gone.")
}

func ms(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// size is that of all files in a directory.
func size(dir string) (n int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}
