package swap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// mappingState is what a process has said of a mapping beside its protection.
// The new mapping is told the same.
type mappingState struct {
	advice    []int // of madvise(2)
	locked    bool  // mlock(2)
	onFault   bool  // mlock2(2): page by page, as they come
	noReserve bool  // MAP_NORESERVE
}

// adviceOf says which advice a VmFlag comes from (fs/proc/task_mmu.c
// show_smap_vma_flags, mm/madvise.c madvise_vma_behavior).
var adviceOf = map[string]int{
	"sr": unix.MADV_SEQUENTIAL,
	"rr": unix.MADV_RANDOM,
	"dc": unix.MADV_DONTFORK,
	"dd": unix.MADV_DONTDUMP,
	"hg": unix.MADV_HUGEPAGE,
	"nh": unix.MADV_NOHUGEPAGE,
	"mg": unix.MADV_MERGEABLE,
}

// take notes what one VmFlag says, if it is of what can be said again.
func (s *mappingState) take(flag string) bool {
	switch flag {
	case "lo":
		s.locked = true
	case "lf":
		s.onFault = true
	case "nr":
		s.noReserve = true
	default:
		advice, known := adviceOf[flag]
		if !known {
			return false
		}
		s.advice = append(s.advice, advice)
	}
	return true
}

// locking is how an address space locks its new mappings.
type locking int

const (
	// lockNone: it has nothing locked.
	lockNone locking = iota
	// lockBeside: its limit allows the new ones locked beside the old ones.
	lockBeside
	// lockInTurn: it doesn't, so the old ones are unlocked before. The way
	// back locks them again, which the limit allows as it did before, since
	// all that could change it is stopped.
	lockInTurn
)

// memoryLimit is how much memory a process has locked, and may lock.
type memoryLimit struct {
	locked uint64 // in bytes
	most   uint64 // RLIMIT_MEMLOCK
	exempt bool   // CAP_IPC_LOCK: the limit does not bind it
}

// lockingOf says how the space's locked mappings can be locked anew: the
// kernel counts what is locked twice as two (mm/mlock.c do_mlock).
func lockingOf(s *AddressSpace) (locking, error) {
	var size uint64
	for _, m := range s.Mappings {
		if m.state.locked {
			size += m.End - m.Start
		}
	}
	task := s.Tasks[0]
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", task.PID, task.TID))
	if err != nil {
		return 0, err
	}
	l, err := parseLocked(string(status))
	if err != nil {
		return 0, err
	}
	if l.locked == 0 && size == 0 {
		return lockNone, nil
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", task.PID))
	if err != nil {
		return 0, err
	}
	if l.most, err = parseLockLimit(string(limits)); err != nil {
		return 0, err
	}
	return l.locking(size)
}

// locking is how size bytes that are locked already are locked at another
// place.
func (l memoryLimit) locking(size uint64) (locking, error) {
	switch {
	case l.exempt, size <= l.most && l.locked <= l.most-size:
		return lockBeside, nil
	case l.locked <= l.most:
		return lockInTurn, nil
	}
	return 0, fmt.Errorf("%d bytes are locked, and its limit has since been lowered to %d", l.locked, l.most)
}

var errLimits = errors.New("not understood")

// parseLocked finds VmLck and the capabilities in the text of
// /proc/PID/status. A kernel built without NUMA or MMU may leave out neither.
func parseLocked(text string) (memoryLimit, error) {
	var l memoryLimit
	have := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if key != "VmLck" && key != "CapEff" {
			continue
		}
		if len(fields) == 0 {
			return l, fmt.Errorf("status line %q: %w", line, errLimits)
		}
		if key == "CapEff" {
			caps, err := strconv.ParseUint(fields[0], 16, 64)
			if err != nil {
				return l, fmt.Errorf("status line %q: %w", line, errLimits)
			}
			l.exempt = caps&(1<<unix.CAP_IPC_LOCK) != 0
			have |= 1
			continue
		}
		const kiB = 1 << 10
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil || n > 1<<63/kiB || len(fields) != 2 || fields[1] != "kB" {
			return l, fmt.Errorf("status line %q: %w", line, errLimits)
		}
		l.locked = n * kiB
		have |= 2
	}
	if have != 3 {
		return l, fmt.Errorf("status without VmLck or CapEff: %w", errLimits)
	}
	return l, nil
}

// parseLockLimit finds the soft limit of locked memory in the text of
// /proc/PID/limits (fs/proc/base.c proc_pid_limits).
func parseLockLimit(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, "Max locked memory")
		if !found {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			break
		}
		if fields[0] == "unlimited" {
			return ^uint64(0), nil
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("limit of locked memory: %w", errLimits)
		}
		return n, nil
	}
	return 0, fmt.Errorf("limits without locked memory: %w", errLimits)
}

// protectionKey reads the value of a smaps line "ProtectionKey: N"; absent
// where the processor has none.
func protectionKey(value []byte) (int, error) {
	key, err := strconv.Atoi(string(bytes.TrimSpace(value)))
	if err != nil {
		return 0, fmt.Errorf("protection key %q: %w", value, errMapLine)
	}
	return key, nil
}

// addLocking sets how a's space locks, or says what is in the way.
func (a *assembly) addLocking(p *Process, s *AddressSpace) {
	how, err := lockingOf(s)
	if err == nil || vanished(err) == nil {
		s.locking = how
		return
	}
	if !slices.ContainsFunc(s.Mappings, func(m *Mapping) bool { return m.state.locked }) {
		return
	}
	a.Obstacles = append(a.Obstacles, p.obstacle("locked memory", err.Error(), "raise its RLIMIT_MEMLOCK (prlimit), or unlock it"))
}

// mmapFlags are the flags that m is mapped with again.
func (m *Mapping) mmapFlags() int {
	flags := unix.MAP_PRIVATE
	if m.Shared {
		flags = unix.MAP_SHARED
	}
	if m.state.noReserve {
		flags |= unix.MAP_NORESERVE
	}
	return flags
}

// mlockOnFault is MLOCK_ONFAULT of include/uapi/asm-generic/mman-common.h.
const mlockOnFault = 1

// lock locks length bytes at addr as m is locked.
func (p *program) lock(m *Mapping, addr, length ptrace.Arg) *ptrace.Call {
	flags := 0
	if m.state.onFault {
		flags = mlockOnFault
	}
	return p.Syscall(unix.SYS_MLOCK2, addr, length, ptrace.Int(flags)).Name("mlock of " + m.Path)
}

// unlockOld unlocks the old mapping, where the new one could not be locked
// else.
func (p *program) unlockOld(s *AddressSpace, m *Mapping) {
	if !m.state.locked || s.locking != lockInTurn {
		return
	}
	length := ptrace.Const(m.End - m.Start)
	p.Syscall(unix.SYS_MUNLOCK, ptrace.Const(m.Start), length).Name("munlock of " + m.Path)
	p.did(func() {
		// Pages that are not there any more are an error, but the mapping is
		// marked before they are looked for (mm/mlock.c do_mlock).
		p.lock(m, ptrace.Const(m.Start), length).Ignore()
	})
}

// tellState makes the new mapping what m is.
func (p *program) tellState(s *AddressSpace, m *Mapping, made *ptrace.Call) {
	length := ptrace.Const(m.End - m.Start)
	for _, advice := range m.state.advice {
		p.Syscall(unix.SYS_MADVISE, made, length, ptrace.Int(advice)).
			Name(fmt.Sprintf("madvise %d of %s", advice, m.Path))
	}
	switch {
	case m.state.locked:
		p.lock(m, made, length)
	case s.locking != lockNone:
		// mlockall(MCL_FUTURE) locks what is mapped from then on.
		p.Syscall(unix.SYS_MUNLOCK, made, length).Name("munlock of " + m.Path)
	}
}
