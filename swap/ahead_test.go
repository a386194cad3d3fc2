package swap

import (
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// What was written before the stop serves if nothing has changed, with the
// replacements that there are by then; and not if anything has.
func TestProgramsAreWrittenAhead(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/file", unix.O_RDWR)
	p.Chdir(m.old)
	rooted := rig.StartPuppet(t)
	rooted.Must(unix.SYS_CHROOT, m.old)
	plan := m.plan(t, Scope{})
	learn(t, plan)
	v, err := newVerdict(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	a := writeAhead(plan, v)
	defer a.close()
	written := func() map[int]*program {
		of := map[int]*program{}
		for _, jobs := range a.jobs(plan.Usage) {
			of[jobs[0].task.PID] = jobs[0].program
		}
		if len(of) != 2 {
			t.Fatalf("%d processes have jobs, want 2", len(of))
		}
		return of
	}
	freeze(t, plan, p.PID)
	freeze(t, plan, rooted.PID)
	refresh(t, plan)
	of := written()
	if of[p.PID] == nil || of[rooted.PID] != nil {
		t.Fatalf("written ahead: %v of a process with a file and a working directory, %v of one with a root that may have another one by now",
			of[p.PID] != nil, of[rooted.PID] != nil)
	}
	d := plan.Usage.fd(t, p.PID, fd).Description
	was := d.Replacement
	defer func() { d.Replacement = was }()
	d.Replacement = v.file
	messages := of[p.PID].messages
	if last := messages[len(messages)-1]; len(last) != 1 || *last[0] != v.file {
		t.Error("the program is for the replacement that there was, not for the one that there is")
	}
	d.Replacement = was

	delete(plan.Stopped, p.PID)
	if err := unix.Kill(p.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.Open(m.old+"/file", unix.O_RDONLY)
	freeze(t, plan, p.PID)
	refresh(t, plan)
	if of := written(); of[p.PID] != nil {
		t.Error("a program serves that was written for fewer files")
	}
}
