package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"spfs/test/rig"
)

// criu runs plain CRIU with spfs as its action script.
func criu(t *testing.T, images string, env []string, args ...string) rig.Result {
	t.Helper()
	p := rig.Build(t)
	cmd := exec.Command(p.CRIU, append(args, "--images-dir", images, "--action-script", p.SPFS, "-v4")...)
	cmd.Env = append(os.Environ(), env...)
	return rig.RunCmd(t, cmd)
}

// What spfs dump and restore do works for one who calls CRIU himself, too.
func TestHookOfPlainCRIU(t *testing.T) {
	for name, byCommand := range map[string]bool{"swap by hand": false, "SPFS_MOUNT": true} {
		t.Run(name, func(t *testing.T) {
			data, mnt := rig.Served(t, "mnt")
			c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 5, Threads: 1, Children: 1}, mnt[0]+":/mnt")
			c.Counter.CountsOn(50)
			top := rig.Dir(t)
			images, at := rig.Mkdir(t, top, "images"), rig.Mkdir(t, top, "stub")

			criu(t, images, nil, "dump", "--tree", itoa(c.PID), "--external", "mnt[/mnt]:KEY",
				"--log-file", "dump.log").OK(t)
			rig.Unmount(t, mnt[0])
			if _, err := os.Stat(filepath.Join(images, "spfs.manifest")); err != nil {
				t.Error(err)
			}

			var env []string
			if byCommand {
				env = append(env, "SPFS_MOUNT=/mnt="+rig.BindfsCommand(data))
			}
			t.Cleanup(func() { discardStubs(t) })
			t.Cleanup(func() {
				for range rig.MountsBeneath(t, at) {
					rig.Unmount(t, at)
				}
			})
			criu(t, images, env, "restore", "--external", "mnt[KEY]:"+at, "--root", c.Root,
				"--restore-detached", "--log-file", "restore.log").OK(t)
			c.Restored()
			if byCommand {
				// CRIU pays no regard to a hook that fails when the tree runs.
				// What it says goes to CRIU's log.
				if log := filepath.Join(images, "restore.log"); !counts(c.Counter) {
					b, _ := os.ReadFile(log)
					t.Fatalf("the tree was not swapped. CRIU's log ends: %s", b[max(0, len(b)-2000):])
				}
			} else {
				stub := stubBy(t, c.PID)
				c.Counter.Stands(50 * time.Millisecond)
				again := rig.Mkdir(t, top, "again")
				rig.Bindfs(t, data, again)
				swapOff(t, stub, data, again)
			}
			c.Counter.CountsOn(100)
			c.Counter.Check()
			c.Counter.End(data)
		})
	}
}

// counts waits for a counter to count, and tells whether it does.
func counts(c *rig.Counter) bool {
	from := c.Count()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c.Count() > from+10 {
			return true
		}
	}
	return false
}

// A hook that fails makes CRIU fail, and the tree is as it was.
func TestHookThatFailsAtDump(t *testing.T) {
	data, mnt := rig.Served(t, "mnt")
	c := rig.StartCounterContainer(t, "/mnt", rig.CounterOptions{FDs: 5}, mnt[0]+":/mnt")
	images := rig.Mkdir(t, rig.Dir(t), "images")
	// The manifest can't be written where a directory has its name.
	rig.Mkdir(t, images, "spfs.manifest")
	if r := criu(t, images, nil, "dump", "--tree", itoa(c.PID), "--external", "mnt[/mnt]:KEY"); r.Status == 0 {
		t.Error("CRIU succeeded though its hook failed")
	}
	c.Counter.CountsOn(50)
	c.Counter.Check()
	c.Counter.End(data)
}
