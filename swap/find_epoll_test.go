package swap

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// A task that registers a file whose daemon does not say whether it is ready
// holds the epoll's mutex, for which a reader of its fdinfo would wait without
// end.
func TestFindWithEpollThatHangs(t *testing.T) {
	dir := rig.Dir(t)
	old := rig.Mkdir(t, dir, "old")
	data := rig.Mkdir(t, dir, "data")
	daemon := rig.Bindfs(t, data, old)
	rig.Write(t, data+"/file", "x")
	p := rig.StartPuppet(t)
	fd := p.Open(old+"/file", unix.O_RDONLY)
	epoll := p.Must(unix.SYS_EPOLL_CREATE1, 0)
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			unix.Kill(daemon.PID, unix.SIGCONT)
		}
	}
	t.Cleanup(resume)
	call := p.Start(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_ADD, fd, make([]byte, 12))
	rig.Await(t, 10*time.Second, func() bool {
		return strings.Contains(rig.KernelStack(p.PID), "fuse_file_poll")
	}, "the call waits for the daemon")
	began := time.Now()
	u := findOn(t, old, Scope{PIDs: []int{p.PID}})
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
	if len(u.Obstacles) != 1 || !strings.Contains(u.Obstacles[0].String(), "epoll): it can't be read") {
		t.Errorf("in the way is %v", u.Obstacles)
	}
	resume()
	if _, err := call.Wait(); err != nil {
		t.Errorf("the call says %v", err)
	}
	u = findOn(t, old, Scope{PIDs: []int{p.PID}})
	u.clear(t)
	if n := len(u.Tables[0].epolls); n != 1 {
		t.Errorf("%d registrations were found, want 1", n)
	}
}
