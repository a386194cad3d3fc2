package ptrace

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnboundLabel(t *testing.T) {
	p := NewProgram()
	p.Goto(p.Label())
	if err := p.assemble(make([]byte, p.size()), 0x1000); !errors.Is(err, ErrUnbound) {
		t.Errorf("%v, want ErrUnbound", err)
	}
}

// flow is a program that does one of the things which the walk through a table
// can do. Calls that must not be made close descriptor 0 of none: they would fail,
// and the failure be noted.
type flow struct {
	name string
	make func(p *Program)
	fail string // name of the call that must fail
}

// flows are all of them, for a process of that number.
func flows(pid int) []flow {
	never := func(p *Program) { p.Syscall(unix.SYS_CLOSE, Int(-1)).Name("never") }
	return []flow{
		{"empty", func(p *Program) {}, ""},
		{"end", func(p *Program) { p.End(); never(p) }, ""},
		{"error ends", func(p *Program) {
			p.Syscall(unix.SYS_CLOSE, Int(-1)).Name("first")
			p.Syscall(unix.SYS_CLOSE, Int(-1)).Name("second")
		}, "first"},
		{"ignored", func(p *Program) { p.Syscall(unix.SYS_CLOSE, Int(-1)).Ignore() }, ""},
		{"error path is reported", func(p *Program) {
			l := p.Label()
			p.Syscall(unix.SYS_CLOSE, Int(-1)).OnError(l).Name("first")
			never(p)
			p.Bind(l)
			p.Syscall(unix.SYS_GETPID)
		}, "first"},
		{"goto", func(p *Program) { l := p.Label(); p.Goto(l); never(p); p.Bind(l) }, ""},
		{"equal", func(p *Program) {
			r, l := p.Data([]byte{1, 0, 0, 0x80}), p.Label()
			p.BranchEqual(r, 0x80000001, l)
			never(p)
			p.Bind(l)
		}, ""},
		{"equal, not", func(p *Program) {
			r, l := p.Zero(4), p.Label()
			p.BranchEqual(r, 1, l)
			p.End()
			p.Bind(l)
			never(p)
		}, ""},
		{"not equal", func(p *Program) {
			r, l := p.Zero(4), p.Label()
			p.BranchNotEqual(r, 1, l)
			never(p)
			p.Bind(l)
		}, ""},
		{"not equal, not", func(p *Program) {
			r, l := p.Zero(4), p.Label()
			p.BranchNotEqual(r, 0, l)
			p.End()
			p.Bind(l)
			never(p)
		}, ""},
		{"result branch", func(p *Program) {
			l := p.Label()
			p.BranchResult(p.Syscall(unix.SYS_GETPID), uint32(pid), l)
			never(p)
			p.Bind(l)
		}, ""},
		{"signed load", func(p *Program) { // AT_FDCWD, as 32 bits
			p.Syscall(unix.SYS_OPENAT, p.Data([]byte{0x9c, 0xff, 0xff, 0xff}).Int32(), p.String("."), Int(unix.O_PATH)).Name("openat")
			p.Syscall(unix.SYS_CLOSE, p.Zero(4).Int32()).Ignore()
		}, ""},
		{"unsigned load", func(p *Program) { // sign extended, it would be EINVAL
			fd := p.Syscall(unix.SYS_MEMFD_CREATE, p.String(""), Int(0))
			p.Syscall(unix.SYS_FTRUNCATE, fd, p.Data([]byte{0, 0, 0, 0x80}).Uint32()).Name("ftruncate")
			p.Syscall(unix.SYS_CLOSE, fd)
		}, ""},
		{"copy", func(p *Program) {
			to, l := p.Data(make([]byte, 8)), p.Label()
			p.Copy32(to, p.Data([]byte{7, 0, 0, 0x80}))
			p.BranchEqual(to, 0x80000007, l)
			never(p)
			p.Bind(l)
		}, ""},
		{"pointers", func(p *Program) {
			iov, text := p.Zero(16), p.Data([]byte("x"))
			p.PutAddress(iov, text)
			fds := p.Zero(8)
			p.Syscall(unix.SYS_PIPE2, fds, Int(0))
			w := p.Syscall(unix.SYS_WRITEV, fds.Add(4).Int32(), iov, Int(1))
			l := p.Label()
			p.Syscall(unix.SYS_CLOSE, fds.Int32())
			p.Syscall(unix.SYS_CLOSE, fds.Add(4).Int32())
			p.BranchResult(w, 0, l) // the length was left 0
			never(p)
			p.Bind(l)
		}, ""},
		{"six arguments", func(p *Program) {
			m := p.Syscall(unix.SYS_MMAP, Int(0), Int(4096), Int(3), Int(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), Int(-1), Int(0))
			p.Syscall(unix.SYS_MUNMAP, m, Int(4096))
		}, ""},
	}
}

// check compares how the program ended with how it must.
func (c *flow) check(t *testing.T, err error) {
	t.Helper()
	var e *CallError
	switch {
	case c.fail == "" && err != nil:
		t.Error(err)
	case c.fail != "" && (!errors.As(err, &e) || e.Name != c.fail || e.Errno != unix.EBADF):
		t.Errorf("%v, want EBADF of %s", err, c.fail)
	}
}

// Each of them in a real process.
func TestProgramFlow(t *testing.T) {
	f := start(t, "sleepers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	th := p.Leader()
	for _, c := range flows(f.pid) {
		t.Run(c.name, func(t *testing.T) {
			prog := NewProgram()
			c.make(prog)
			_, err := th.Run(ctx, prog)
			c.check(t, err)
		})
	}
	noScratch(t, f.pid)
	check(t, p.Release())
}

// A table of many pages.
func TestLargeProgram(t *testing.T) {
	f := start(t, "sleepers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	prog := NewProgram()
	var last *Call
	for range 20000 {
		last = prog.Syscall(unix.SYS_GETTID)
	}
	b := must(p.Leader().Run(ctx, prog))(t)
	if r := must(b.Result(last))(t); r != uint64(f.pid) {
		t.Errorf("gettid: %d, want %d", r, f.pid)
	}
	check(t, p.Release())
}

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		r    int64
		want error
	}{
		{0, nil}, {1, nil}, {-1, unix.EPERM}, {-4095, unix.EINTR}, {-4096, nil}, {-512, unix.EINTR}, {-516, unix.EINTR},
		{-133, unix.EHWPOISON}, {math.MinInt64, nil},
	} {
		if got := errnoOf(uint64(c.r)); got != c.want {
			t.Errorf("%d: %v, want %v", c.r, got, c.want)
		}
	}
}
