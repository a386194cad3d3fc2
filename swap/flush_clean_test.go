package swap

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// Pages that the daemon does not have are told by the kernel's tables, so that
// nothing need be flushed where there are none.
func TestCleanTellsOfPages(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", "0123456789")
	p := rig.StartPuppet(t)
	p.Close(p.Open(m.old+"/file", unix.O_RDWR)) // the daemon answers that it has no FLUSH
	fd := p.Open(m.old+"/file", unix.O_RDWR)
	at := p.Mmap(fd, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	p.Store(at, []byte("a"))
	plan := m.plan(t, Scope{})
	learn(t, plan)
	freeze(t, plan, p.PID)
	r := &run{plan: plan}
	clean := func() bool {
		ok, err := r.clean(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if clean() {
		t.Error("a page was written to, and nothing is to be flushed")
	}
	if err := flushAll(context.Background(), plan); err != nil {
		t.Fatal(err)
	}
	if !clean() {
		t.Error("everything has been flushed, and still something is to be")
	}
}
