package swap

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// What was planned counts when the processes are stopped only if nothing has
// changed but positions and sizes.
func TestRefreshOfWhatIsTheSame(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, m *twoMounts, p, other *rig.Puppet, file int)
		same   bool
	}{
		{"nothing", func(*testing.T, *twoMounts, *rig.Puppet, *rig.Puppet, int) {}, true},
		{"a position", func(_ *testing.T, _ *twoMounts, p, _ *rig.Puppet, file int) { p.Seek(file, 5, unix.SEEK_SET) }, true},
		{"a size", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) {
			p.Write(file, "0123456789abcde")
			rig.Write(t, m.copy+"/file", "0123456789abcde")
		}, true},
		{"a name", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) {
			if err := os.Rename(m.old+"/file", m.old+"/renamed"); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"the working directory", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) { p.Chdir("/") }, false},
		{"a flag", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) {
			p.Must(unix.SYS_FCNTL, file, unix.F_SETFL, unix.O_APPEND)
		}, false},
		{"a lock", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) {
			p.Must(unix.SYS_FLOCK, file, unix.LOCK_EX)
		}, false},
		{"a mapping", func(t *testing.T, m *twoMounts, p, _ *rig.Puppet, file int) {
			p.Mmap(file, pageSize, unix.PROT_READ, unix.MAP_SHARED)
		}, false},
		{"another user", func(t *testing.T, m *twoMounts, _, other *rig.Puppet, file int) {
			other.Open(m.old+"/file", unix.O_RDONLY)
		}, false},
		{"a mount", func(t *testing.T, m *twoMounts, _, _ *rig.Puppet, file int) {
			at := t.TempDir()
			if err := unix.Mount(m.old, at, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newTwoMounts(t)
			m.write(t, "file", "0123456789")
			p, other := rig.StartPuppet(t), rig.StartPuppet(t)
			file := p.Open(m.old+"/file", unix.O_RDWR)
			p.Chdir(m.old)
			plan := m.plan(t, Scope{})
			learn(t, plan)
			c.change(t, m, p, other, file)
			freeze(t, plan, p.PID)
			plan.known.stopped = plan.Stopped
			same, err := plan.refreshSame(context.Background())
			if err != nil || same != c.same {
				t.Fatalf("that nothing has changed is said to be %v (%v), want %v", same, err, c.same)
			}
			if !same {
				return
			}
			var st unix.Stat_t
			if err := unix.Stat(m.old+"/file", &st); err != nil {
				t.Fatal(err)
			}
			d := plan.Usage.fd(t, p.PID, file).Description
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, file))
			if err != nil {
				t.Fatal(err)
			}
			info, err := parseFDInfo(text)
			if err != nil {
				t.Fatal(err)
			}
			if d.Pos != info.pos || d.NewPos != info.pos || int64(d.attr.Size) != st.Size {
				t.Errorf("planned are position %d (%d) and size %d, it has %d and %d", d.Pos, d.NewPos, d.attr.Size, info.pos, st.Size)
			}
		})
	}
}
