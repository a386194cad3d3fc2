package ptrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A thread's filters are out of force while its tracer lives, and in force again
// the moment it dies: what is left of a batch then is made under them. So they
// are asked beforehand.

// filterCall is struct seccomp_data (include/uapi/linux/seccomp.h) as a program
// of package bpf reads it: that takes every word for one of the network's order.
type filterCall [64]byte

func newFilterCall(nr, at uint64, args [6]uint64) (c filterCall) {
	word := binary.BigEndian.PutUint32
	word(c[0:], uint32(nr))
	word(c[4:], auditArch)
	for i, v := range append([]uint64{at}, args[:]...) {
		word(c[8+8*i:], uint32(v))
		word(c[12+8*i:], uint32(v>>32))
	}
	return c
}

// filter is one that a thread has, and what it has answered.
type filter struct {
	vm      *bpf.VM
	answers map[filterCall]bool
}

func newFilter(raw []bpf.RawInstruction) (*filter, error) {
	program, all := bpf.Disassemble(raw)
	if !all {
		return nil, errors.New("it has instructions that are not known")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		return nil, err
	}
	return &filter{vm, map[filterCall]bool{}}, nil
}

// allows says whether the filter lets a call through. What it would hand over to
// a tracer or a listener is not.
func (f *filter) allows(c filterCall) bool {
	answer, known := f.answers[c]
	if !known {
		ret, err := f.vm.Run(c[:])
		action := uint32(ret) & unix.SECCOMP_RET_ACTION_FULL
		answer = err == nil && (action == unix.SECCOMP_RET_ALLOW || action == unix.SECCOMP_RET_LOG)
		f.answers[c] = answer
	}
	return answer
}

// filtersOf returns the filters of a stopped thread. Many threads have the same.
func (t *Tracer) filtersOf(th *Thread) (list []*filter, err error) {
	for i := uintptr(0); ; i++ {
		n, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(th.TID), i, 0, 0, 0)
		if e == unix.ENOENT {
			return list, nil
		}
		if e != 0 {
			return nil, th.failed("count the instructions of the filters of", e)
		}
		raw := make([]unix.SockFilter, max(n, 1)) // none is empty (net/core/filter.c bpf_check_basics_ok)
		err := request(unix.PTRACE_SECCOMP_GET_FILTER, th.TID, i, unsafe.Pointer(&raw[0]))
		if err != nil {
			return nil, th.failed("read the filters of", err)
		}
		key := string(unsafe.Slice((*byte)(unsafe.Pointer(&raw[0])), len(raw)*int(unsafe.Sizeof(raw[0]))))
		f := t.filters[key]
		if f == nil {
			instructions := make([]bpf.RawInstruction, len(raw))
			for k, r := range raw {
				instructions[k] = bpf.RawInstruction{Op: r.Code, Jt: r.Jt, Jf: r.Jf, K: r.K}
			}
			if f, err = newFilter(instructions); err != nil {
				return nil, fmt.Errorf("thread %d of process %d: a seccomp filter: %w", th.TID, th.p.PID, err)
			}
			if t.filters == nil {
				t.filters = map[string]*filter{}
			}
			t.filters[key] = f
		}
		list = append(list, f)
	}
}

// CheckFilters returns an [ErrForbidden] if the thread's filters would not let it
// make the calls of a program, or another thread of its process those that end
// its wait for it, should the tracer die. Arguments that are not known before
// count as 0.
func (th *Thread) CheckFilters(p *Program) error {
	return th.p.t.Do(func() error {
		var calls []namedCall
		for i, at := range p.calls {
			l := &p.lines[at]
			c := namedCall{name: p.names[i], nr: l.nr.n}
			for k, a := range l.args {
				if a.kind == constant {
					c.args[k] = a.n
				}
			}
			calls = append(calls, c)
		}
		if err := th.allows(append(calls, ownCalls...)); err != nil {
			return err
		}
		for _, other := range th.p.Threads {
			if other == th {
				continue
			}
			if err := other.allows(parkedCalls); err != nil {
				return err
			}
		}
		return nil
	})
}

// namedCall is a system call as errors name it.
type namedCall struct {
	name string
	nr   uint64
	args [6]uint64
}

// parkedCalls are made by a thread that is parked, ownCalls by one that runs a
// program, besides the program's: see code_linux_*.s.
var (
	parkedCalls = []namedCall{
		{"futex", unix.SYS_FUTEX, [6]uint64{}},
		{"ppoll", unix.SYS_PPOLL, [6]uint64{}},
		{"rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, [6]uint64{2, 0, 0, sigsetSize}}, // SIG_SETMASK
	}
	ownCalls = append([]namedCall{
		{"munmap", unix.SYS_MUNMAP, [6]uint64{}},
	}, parkedCalls...)
)

// allows returns an ErrForbidden if not all of the calls are let through.
func (th *Thread) allows(calls []namedCall) error {
	if filtered, err := th.filtered(); err != nil || !filtered {
		return err
	}
	st, err := th.Status()
	if err != nil {
		return err
	}
	const filters = 2 // SECCOMP_MODE_FILTER; strict mode has no filters, and allows nothing
	var list []*filter
	if st.Seccomp == filters {
		if list, err = th.p.t.filtersOf(th); err != nil {
			return err
		}
	}
	forbidden := map[string]bool{}
	var names []string
	for _, c := range calls {
		allowed := st.Seccomp == filters
		data := newFilterCall(c.nr, th.p.vdso.start, c.args)
		for _, f := range list {
			allowed = allowed && f.allows(data)
		}
		if !allowed && !forbidden[c.name] {
			forbidden[c.name] = true
			names = append(names, c.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("thread %d of process %d: %w: %s", th.TID, th.p.PID, ErrForbidden, strings.Join(names, ", "))
}
