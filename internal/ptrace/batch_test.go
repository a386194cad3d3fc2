package ptrace

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSyscall(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	for _, th := range p.Threads {
		if tid := must(th.Syscall(ctx, unix.SYS_GETTID))(t); tid != uint64(th.TID) {
			t.Errorf("gettid in thread %d: %d", th.TID, tid)
		}
		if _, err := th.Syscall(ctx, unix.SYS_CLOSE, 9999); !errors.Is(err, unix.EBADF) {
			t.Errorf("close of no descriptor: %v, want EBADF", err)
		}
	}
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// pipeline is a program that exercises everything a program can do, and
// leaves the process as it was. It returns the calls whose results are known.
func pipeline() (p *Program, tid, n *Call, buf Ref) {
	p = NewProgram()
	fds, text := p.Zero(8), p.String("through a pipe")
	buf = p.Zero(32)
	undo := p.Label()
	tid = p.Syscall(unix.SYS_GETTID)
	p.Syscall(unix.SYS_PIPE2, fds, Const(unix.O_CLOEXEC))
	p.FailTo(undo)
	p.Syscall(unix.SYS_WRITE, fds.Add(4).Int32(), text, Const(15))
	n = p.Syscall(unix.SYS_READ, fds.Int32(), buf, Const(32))
	p.Syscall(unix.SYS_CLOSE, Int(-1)).Ignore()
	p.Bind(undo)
	p.Syscall(unix.SYS_CLOSE, fds.Int32()).Ignore()
	p.Syscall(unix.SYS_CLOSE, fds.Add(4).Uint32()).Ignore()
	return p, tid, n, buf
}

func TestRunGivesResults(t *testing.T) {
	f := start(t, "workers")
	tr, ctx := newTracer(t), withTime(t)
	prog, tid, n, buf := pipeline()
	p := must(tr.Seize(ctx, f.pid))(t)
	for range 3 {
		for _, th := range p.Threads {
			b := must(th.Run(ctx, prog))(t)
			if got := must(b.Result(tid))(t); got != uint64(th.TID) {
				t.Errorf("gettid in thread %d: %d", th.TID, got)
			}
			if got := must(b.Result(n))(t); got != 15 {
				t.Errorf("read %d bytes, want 15", got)
			}
			if got := string(b.Bytes(buf, 14)); got != "through a pipe" {
				t.Errorf("read %q", got)
			}
		}
	}
	noScratch(t, f.pid)
	check(t, p.Release())
	f.signal(unix.SIGUSR2)
	f.expect("fine")
	f.ends()
}

// noScratch checks that no batch has left its mapping. It looks for what shared
// anonymous memory is called, since a thread may map things of its own.
func noScratch(t *testing.T, pid int) {
	t.Helper()
	maps := must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)))(t)
	if bytes.Contains(maps, []byte("/dev/zero")) {
		t.Errorf("a scratch mapping was left:\n%s", maps)
	}
}

func TestStress(t *testing.T) {
	f := start(t, "workers")
	tr := newTracer(t)
	ctx, cancel := contextWith(5 * time.Minute) // seconds, unless the machine is busy
	defer cancel()
	prog, tid, _, _ := pipeline()
	random := rand.New(rand.NewSource(1))
	rounds := 3000
	for range rounds {
		check(t, tr.Do(func() error {
			p, err := tr.Seize(ctx, f.pid)
			if err != nil {
				return err
			}
			th := p.Threads[random.Intn(len(p.Threads))]
			b, err := th.Run(ctx, prog)
			if err != nil {
				return errors.Join(err, p.Release())
			}
			if got, err := b.Result(tid); err != nil || got != uint64(th.TID) {
				return fmt.Errorf("gettid in %d: %d, %v", th.TID, got, err)
			}
			return p.Release()
		}))
	}
	f.signal(unix.SIGUSR2)
	t.Log(f.expect("fine"))
	f.ends()
}
