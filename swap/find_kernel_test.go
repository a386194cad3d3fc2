package swap

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
	"spfs/test/rig"
)

func learn(t *testing.T, plan *Plan) {
	t.Helper()
	if _, err := fusestate.Shared(); err != nil {
		t.Fatal(err)
	}
	if err := plan.learn(context.Background()); err != nil {
		t.Fatal(err)
	}
	if plan.known.reader == nil {
		t.Fatal("/proc and the kernel's tables don't agree")
	}
}

// A process that changes nothing but positions is not read again when it is
// stopped, and its positions, sizes and names are right all the same.
func TestKernelTablesSaveReading(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	m.write(t, "renamed", "0123456789")
	p := rig.StartPuppet(t)
	file := p.Open(m.old+"/file", unix.O_RDWR)
	p.Mmap(file, pageSize, unix.PROT_READ, unix.MAP_PRIVATE)
	p.Chdir(m.old)
	still := rig.StartPuppet(t)
	renamed := still.Open(m.old+"/renamed", unix.O_RDONLY)
	plan := m.plan(t, Scope{})
	learn(t, plan)
	if plan.known.proven[p.PID].visit == nil || plan.known.proven[still.PID].visit == nil {
		t.Fatalf("nothing changed as they were read, and noted are %v", plan.known.proven)
	}
	p.Seek(file, 5, unix.SEEK_SET)
	if err := os.Rename(m.old+"/renamed", m.old+"/other"); err != nil {
		t.Fatal(err)
	}
	m.write(t, "renamed", "0123456789") // for the new mount too: a stranger
	freeze(t, plan, p.PID)
	freeze(t, plan, still.PID)
	l, err := look(plan.known.reader, plan.From.Mount.Dev, []int{p.PID, still.PID})
	if err != nil {
		t.Fatal(err)
	}
	plan.known.stopped = plan.Stopped
	for _, v := range plan.known.visitsOf(l) {
		if reused := v.use != nil; reused != (v.pid == p.PID) {
			t.Errorf("process %d (a file of %d was renamed) need not be read: %v", v.pid, still.PID, reused)
		}
	}
	plan.Refresh(context.Background()) // the renamed file may be missing on the new mount
	if d := plan.Usage.fd(t, p.PID, file).Description; d.Pos != 5 || d.Path != "/file" {
		t.Errorf("the position is 5 in /file, found is %d in %s", d.Pos, d.Path)
	}
	if d := plan.Usage.fd(t, still.PID, renamed).Description; d.Path != "/other" {
		t.Errorf("the file is called /other now, found is %s", d.Path)
	}
	if len(plan.Usage.Spaces) != 1 || len(plan.Usage.Contexts) != 1 {
		t.Errorf("%d address spaces and %d contexts were found", len(plan.Usage.Spaces), len(plan.Usage.Contexts))
	}
}

// Who comes to use the file system after the first look, or uses more of it, is
// found by the kernel's tables.
func TestKernelTablesFindWhatIsNew(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	p := rig.StartPuppet(t)
	first := p.Open(m.old+"/file", unix.O_RDWR)
	later := rig.StartPuppet(t)
	outside := rig.StartPuppet(t)
	plan := m.plan(t, Scope{Trees: []int{p.PID, later.PID}})
	learn(t, plan)
	second := p.Open(m.old+"/file", unix.O_RDONLY|unix.O_CLOEXEC)
	p.Close(first)
	child := later.Spawn(int(unix.SIGCHLD))
	fd := child.Open(m.old+"/file", unix.O_RDWR)
	outside.Open(m.old+"/file", unix.O_RDWR)
	freeze(t, plan, p.PID)
	refresh(t, plan)
	if f := plan.Usage.fd(t, p.PID, second); !f.CloseOnExec {
		t.Errorf("found of the second descriptor is %+v", f)
	}
	if d := plan.Usage.fd(t, child.PID, fd).Description; d.Path != "/file" {
		t.Errorf("the child has /file open, found is %s", d.Path)
	}
	if n := len(plan.Usage.Descriptions); n != 2 {
		t.Errorf("the tree has 2 descriptions, found are %d", n)
	}
}
