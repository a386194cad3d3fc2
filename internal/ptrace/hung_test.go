package ptrace

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A parent in vfork stands for a thread that hangs in a file system.
func TestCatchLeavesWhatHangs(t *testing.T) {
	f, other := start(t, "victim", "vfork"), start(t, "workers")
	await(t, "sleep", func() bool { return state(t, f.pid) == 'D' })
	tr, ctx := newTracer(t), withTime(t)
	ps := must(tr.Catch(ctx, []int{other.pid, f.pid}))(t)
	if ps[0].hangs() || !ps[1].hangs() {
		t.Errorf("the one that runs hangs: %v; the one that hangs: %v", ps[0].hangs(), ps[1].hangs())
	}
	// Let go, it is as before.
	began := time.Now()
	for _, p := range ps {
		check(t, p.Release())
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("to let go took %v: what hangs was waited for", took)
	}
	other.signal(unix.SIGUSR2)
	other.expect("fine")
	ps = must(tr.Catch(ctx, []int{f.pid}))(t)
	soon, cancel := contextWith(50 * time.Millisecond)
	defer cancel()
	if err := ps[0].Rest(soon); err == nil {
		t.Error("what hangs is at rest")
	}
	f.in.Write([]byte("x"))
	check(t, ps[0].Rest(ctx))
	th := ps[0].Leader()
	nr, _, result, ok, err := th.CallOf()
	if !th.Hung() || nr != vforkCall || result <= 0 || !ok || err != nil {
		t.Errorf("hung: %v; call %d, result %d, %v, %v", th.Hung(), nr, result, ok, err)
	}
	check(t, ps[0].Release())
	if o := f.outcome(); o.kind != "result" {
		t.Errorf("%+v", o)
	}
	f.ends()
	other.ends()
}

// A call that has ended can be made again, or end in another way.
func TestCallAgain(t *testing.T) {
	f := start(t, "victim", "futex")
	f.asleep()
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	check(t, p.Leader().CallAgain())
	check(t, p.Release())
	f.asleep()
	p = must(tr.Seize(ctx, f.pid))(t)
	if nr, _, _, ok, err := p.Leader().CallOf(); nr != unix.SYS_FUTEX || !ok || err != nil {
		t.Errorf("it is in call %d, %v, %v", nr, ok, err)
	}
	check(t, p.Leader().Answer(7))
	check(t, p.Release())
	if o := f.outcome(); o.kind != "result" || o.value != 7 {
		t.Errorf("%+v", o)
	}
	f.ends()
}
