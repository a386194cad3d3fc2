package swap

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// TestRefreshForgetsNames has files change behind the new mount that have been
// looked up there for the plan, as they do when somebody changes them through the
// old one: whoever uses the new one then must not be told what was there before.
func TestRefreshForgetsNames(t *testing.T) {
	t.Run("all is looked at", func(t *testing.T) { refreshForgetsNames(t, false) })
	t.Run("nothing else has changed", func(t *testing.T) { refreshForgetsNames(t, true) })
}

func refreshForgetsNames(t *testing.T, same bool) {
	m := newTwoMounts(t, "-o", "entry_timeout=3600,attr_timeout=3600")
	for _, name := range []string{"dir/gone", "dir/grown", "dir/other"} {
		m.write(t, name, "short")
	}
	p := rig.StartPuppet(t)
	p.Open(m.old+"/dir/other", unix.O_RDONLY)
	gone, grown := p.Open(m.old+"/dir/gone", unix.O_RDONLY), p.Open(m.old+"/dir/grown", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	p.Close(gone)
	p.Close(grown)
	if same {
		learn(t, plan)
	}
	if err := os.Remove(m.copy + "/dir/gone"); err != nil {
		t.Fatal(err)
	}
	rig.Write(t, m.copy+"/dir/grown", "short, and longer")
	freeze(t, plan, p.PID)
	before := plan.Usage
	refresh(t, plan)
	if (plan.Usage == before) != same {
		t.Fatalf("that all is the same is said to be %v, want %v", !same, same)
	}

	user := rig.StartPuppet(t)
	fd := user.Open(m.new+"/dir/grown", unix.O_RDWR|unix.O_APPEND)
	user.Write(fd, ", twice")
	user.Seek(fd, 0, unix.SEEK_SET)
	if got, want := user.Read(fd, 100), "short, and longer, twice"; got != want {
		t.Errorf("a file that had grown reads %q, want %q", got, want)
	}
	if fd, err := user.Call(unix.SYS_OPENAT, unix.AT_FDCWD, m.new+"/dir/gone", unix.O_RDWR|unix.O_CREAT, 0o600); err != nil {
		t.Errorf("a file that was unlinked can't be made: %d, %v", fd, err)
	}
}
