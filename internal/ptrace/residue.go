package ptrace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxFrames is how much of a stack is searched for signal frames.
const maxFrames = 8 << 20

// CleanResidue removes what a tracer that died, or [Thread.StartDetached], has
// left in the process's vDSO, and reports whether there was anything. While a
// thread may still come to execute it, nothing is removed and the error is
// [ErrResidueInUse]: later is early enough. Starting a batch does the same
// first, with the same error.
func (p *Process) CleanResidue() (found bool, err error) {
	err = p.t.Do(func() error {
		_, err := p.slack()
		if !errors.Is(err, errResidue) {
			return err
		}
		found = true
		return p.cleanResidue()
	})
	return found, err
}

// FinishResidue lets threads that still run a program whose tracer has died
// come to its end, as all of them do, and then does what [Process.CleanResidue]
// does. Nobody else of the process runs meanwhile. A thread that only waits to
// see whether a tracer comes is told that none does.
func (p *Process) FinishResidue(ctx context.Context) (found bool, err error) {
	err = p.t.Do(func() error {
		_, err := p.slack()
		inVDSO := errors.Is(err, errResidue)
		if err != nil && !inVDSO && !errors.Is(err, ErrNoVDSO) && !errors.Is(err, ErrNoSlack) {
			return err
		}
		area, inArea, err := p.findStations()
		if err != nil || !inVDSO && !inArea {
			return err
		}
		found = true
		p.left = area
		defer func() { p.left = region{} }()
		// Those in the vDSO first: others may wait for their end.
		for _, in := range []region{p.vdso, area} {
			if inArea && in == area {
				if err := p.openStations(area); err != nil {
					return err
				}
			}
			for _, th := range p.Threads {
				if err := th.leaveResidue(ctx, in); err != nil {
					return err
				}
			}
		}
		if err := p.cleanResidue(); err != nil || !inArea {
			return err
		}
		_, err = p.Leader().Syscall(ctx, unix.SYS_MUNMAP, area.start, area.end-area.start)
		return err
	})
	return found, err
}

// leaveResidue lets the thread run until it is out of the code that a tracer
// which died has left.
func (th *Thread) leaveResidue(ctx context.Context, where region) error {
	for {
		r := th.regs
		if !where.has(programCounter(&r)) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return th.timeout(err)
		}
		// Nothing but the last call's time limit, and that of a program's own
		// ppoll for what a tracer would have sent, is of any length there; and a
		// parked thread waits for a word.
		if nr, ok := th.waitsIn(&r); ok && (nr == unix.SYS_PPOLL || nr == unix.SYS_FUTEX) && th.endCall(&r) {
			if err := th.writeRegs(&r); err != nil {
				return err
			}
		}
		if err := th.resume(unix.PTRACE_CONT, 0); err != nil {
			return err
		}
		// There is no event to wait for: it leaves the code by a jump.
		var pause backoff
		for range yields {
			pause.wait()
		}
		if err := th.interrupt(); err != nil {
			return err
		}
		if err := th.settle(ctx); err != nil {
			return err
		}
		if err := th.stoppedAgain(); err != nil {
			return err
		}
	}
}

func (p *Process) cleanResidue() error {
	if p.loose {
		return fmt.Errorf("process %d: %w: a thread that was let go with it", p.PID, ErrResidueInUse)
	}
	for _, th := range p.Threads {
		if p.residueHas(programCounter(&th.regs)) {
			return fmt.Errorf("thread %d of process %d: %w: it is there", th.TID, p.PID, ErrResidueInUse)
		}
	}
	if err := p.searchStacks(); err != nil {
		return err
	}
	return p.writeMem(p.vdso.start, make([]byte, p.vdso.end-p.vdso.start))
}

// residueHas says whether addr is in code that a tracer has left.
func (p *Process) residueHas(addr uint64) bool { return p.vdso.has(addr) || p.left.has(addr) }

// searchStacks looks for signal frames that return into the slack: a signal
// that came while a batch without tracer was at its end interrupted it there,
// and the handler may still be running. Any word on a stack with such a value
// counts; alternate stacks are found like others, as the handler's stack
// pointer is in them.
func (p *Process) searchStacks() error {
	text, err := os.ReadFile(p.proc("maps"))
	if err != nil {
		return fmt.Errorf("mappings of process %d: %w", p.PID, err)
	}
	buf := make([]byte, 64<<10)
	for _, th := range p.Threads {
		sp := stackPointer(&th.regs)
		stack, ok := mappingOf(text, sp)
		if !ok {
			continue // no frame can be where nothing is mapped
		}
		at := sp &^ 7
		for limit := min(stack.end, at+maxFrames); at < limit; {
			b := buf[:min(uint64(len(buf)), limit-at)]
			if err := p.readMem(at, b); err != nil {
				return err
			}
			for w := b; len(w) >= 8; w = w[8:] {
				if p.residueHas(binary.LittleEndian.Uint64(w)) {
					return fmt.Errorf("thread %d of process %d: %w: a signal handler returns to it", th.TID, p.PID, ErrResidueInUse)
				}
			}
			at += uint64(len(b))
		}
	}
	return nil
}

// mappingOf returns the line of /proc/PID/maps that has addr.
func mappingOf(maps []byte, addr uint64) (region, bool) {
	for len(maps) > 0 {
		var line []byte
		line, maps, _ = bytes.Cut(maps, []byte("\n"))
		span, _, _ := bytes.Cut(line, []byte(" "))
		from, to, ok := bytes.Cut(span, []byte("-"))
		if !ok {
			continue
		}
		start, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if r := (region{start, end}); err1 == nil && err2 == nil && r.has(addr) {
			return r, true
		}
	}
	return region{}, false
}
