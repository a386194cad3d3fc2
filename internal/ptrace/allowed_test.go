package ptrace

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A filter that looks at what filters look at: the architecture, the call, and
// both halves of an argument.
func TestFilterIsAsked(t *testing.T) {
	const allow, kill, log, fail = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_ERRNO | 1
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: kill},
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_RECVMSG, SkipFalse: 1},
		bpf.RetConstant{Val: log},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_MMAP, SkipTrue: 1},
		bpf.RetConstant{Val: fail},
		bpf.LoadAbsolute{Off: 16 + 2*8, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.PROT_EXEC, SkipTrue: 2},
		bpf.LoadAbsolute{Off: 16 + 8 + 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: kill},
		bpf.RetConstant{Val: allow},
	})
	check(t, err)
	f := must(newFilter(raw))(t)
	for _, c := range []struct {
		name string
		nr   uint64
		args [6]uint64
		want bool
	}{
		{"logged", unix.SYS_RECVMSG, [6]uint64{}, true},
		{"failing", unix.SYS_CLOSE, [6]uint64{}, false},
		{"an argument that is allowed", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ}, true},
		{"one that is not", unix.SYS_MMAP, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, false},
		{"nor with its upper half", unix.SYS_MMAP, [6]uint64{0, 1 << 32, unix.PROT_READ}, false},
	} {
		for range 2 { // the second answer is remembered
			if got := f.allows(newFilterCall(c.nr, 0, c.args)); got != c.want {
				t.Errorf("%s: allowed is %v", c.name, got)
			}
		}
	}
}

func TestFiltersThatForbid(t *testing.T) {
	for mode, want := range map[string]int{"strict": 1, "filter": 2} {
		t.Run(mode, func(t *testing.T) {
			f := start(t, "guarded", mode)
			tr, ctx := newTracer(t), withTime(t)
			await(t, "seccomp", func() bool { return must(readStatus(f.pid))(t).Seccomp == want })
			f.asleep()
			p := must(tr.Seize(ctx, f.pid))(t)
			prog := NewProgram()
			prog.Syscall(unix.SYS_GETPID).Name("asking for its number")
			err := p.Leader().CheckFilters(prog)
			if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "asking for its number, munmap") {
				t.Errorf("CheckFilters: %v", err)
			}
			check(t, p.Release())
		})
	}
	f := start(t, "sleepers")
	tr, ctx := newTracer(t), withTime(t)
	p := must(tr.Seize(ctx, f.pid))(t)
	check(t, p.Leader().CheckFilters(calls(1)))
	check(t, p.Release())
}
