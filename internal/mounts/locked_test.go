package mounts

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	tmpfs(t, dir+"/mount", "mount")
	cmd := exec.Command("/proc/self/exe", "hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: unix.SIGKILL, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal("holder:", err)
	}
	other, err := openNamespace(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	copied := holder(t, unix.MS_PRIVATE)
	for _, c := range []struct {
		what string
		ns   *Namespace
		want bool
	}{{"ours", own(t), false}, {"a copy of the same owner", copied, false}, {"a copy in a user namespace", other, true}} {
		found := at(t, c.ns, dir+"/mount")
		if len(found) != 1 {
			t.Fatalf("%s: %d mounts", c.what, len(found))
		}
		for range 2 { // the second time it would be gone, were it not held
			if locked, err := c.ns.Locked(found[0]); locked != c.want || err != nil {
				t.Errorf("%s: locked %v (%v), want %v", c.what, locked, err, c.want)
			}
		}
		if len(at(t, c.ns, dir+"/mount")) != 1 {
			t.Errorf("%s: asking took the mount away", c.what)
		}
	}
}
