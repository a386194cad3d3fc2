package swap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// Executable is the program that an address space was made for: what
// /proc/PID/exe leads to.
//
// The kernel exchanges it at the process's own wish only (prctl PR_SET_MM_MAP),
// and not while anything of the old one is mapped (kernel/fork.c
// replace_mm_exe_file): so it is done after the verdict, when the new mappings
// have taken the place of the old. Before the verdict the same call is made for
// nothing: it must fail with EBUSY, which is the last thing but one that the
// kernel looks at. The last is whether somebody has the new file open for
// writing; a lease that the swapper holds keeps that from happening.
type Executable struct {
	Mount *Mount
	Path  string // from the file system's root
	Ino   uint64

	Replacement *os.File // nil until planned

	attr  attributes
	lease *os.File                     // held over the verdict
	words [len(memoryMapFields)]uint64 // of struct prctl_mm_map, while stopped
}

// memoryMapFields are the fields of /proc/PID/stat, as proc(5) numbers them,
// that struct prctl_mm_map (include/uapi/linux/prctl.h) begins with, in its
// order; 0 for brk, which only the process itself is told.
var memoryMapFields = [...]int{26, 27, 45, 46, 47, brkField, 28, 48, 49, 50, 51}

const brkField = 0

// Offsets in struct prctl_mm_map, and its size.
const (
	memoryMapExe  = 8*len(memoryMapFields) + 8 + 4 // after auxv and auxv_size
	memoryMapSize = memoryMapExe + 4
)

// parseMemoryMap reads those fields, all but brk, out of the text of
// /proc/PID/stat.
func parseMemoryMap(text string) (words [len(memoryMapFields)]uint64, err error) {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return words, fmt.Errorf("stat %q: %w", text, errStat)
	}
	fields := strings.Fields(text[end+1:]) // from the 3rd on
	for i, number := range memoryMapFields {
		if number == brkField {
			continue
		}
		if len(fields) <= number-3 {
			return words, fmt.Errorf("stat %q: %w", text, errStat)
		}
		if words[i], err = strconv.ParseUint(fields[number-3], 10, 64); err != nil {
			return words, fmt.Errorf("stat %q: %w", text, errStat)
		}
	}
	return words, nil
}

// executable makes an Executable of what a link leads to, or nil.
func (a *assembly) executable(p *Process, s *AddressSpace, r *placeRead) *Executable {
	if r == nil {
		return nil
	}
	e := &Executable{Mount: r.mount, Ino: r.attr.Ino}
	e.Path, e.attr = a.path(p, "exe", r.mount, r.seen)
	add := func(reason, remedy string) {
		a.Obstacles = append(a.Obstacles, p.obstacle("exe → "+printable(r.text), reason, remedy))
	}
	if e.attr.unlinked {
		add("it is the process's program, and unlinked", "restart it after")
	}
	mapped := false
	for _, m := range s.Mappings {
		mapped = mapped || m.Mount == e.Mount && m.Path == e.Path && m.Ino == e.Ino
	}
	if !mapped {
		add("it is the process's program, and nothing of it is mapped", "restart it after")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", s.Tasks[0].PID, s.Tasks[0].TID))
	if err != nil {
		if vanished(err) != nil {
			add(err.Error(), "restart it after")
		}
		return e
	}
	switch may, err := parseMayRestore(string(text)); {
	case err != nil:
		add(err.Error(), "report this")
	case !may:
		add("it is the process's program, which the kernel lets be exchanged only where the process has CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN", "restart it after")
	}
	return e
}

// parseMayRestore says whether a task may exchange its program, by the text of
// /proc/PID/status (kernel/sys.c prctl_set_mm_map: checkpoint_restore_ns_capable).
func parseMayRestore(text string) (bool, error) {
	for line := range strings.Lines(text) {
		value, found := strings.CutPrefix(line, "CapEff:")
		if !found {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return false, fmt.Errorf("status line %q: %w", line, errStat)
		}
		return caps&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_CHECKPOINT_RESTORE) != 0, nil
	}
	return false, fmt.Errorf("status without CapEff: %w", errStat)
}

// exeJob is the opening of e's replacement.
func exeJob(s *AddressSpace) *opening {
	e := s.Exe
	return &opening{
		want: fileWant{e.Mount.ID, e.Path, e.Ino, unix.S_IFREG, unix.O_RDONLY, s.Tasks[0].TID},
		attr: &e.attr, task: s.Tasks[0], mount: e.Mount, compares: true, resource: "exe → " + printable(e.Path),
		done: func(r *replacement) { e.Replacement = r.file },
	}
}

// ready learns what the kernel wants to be told again, from the stopped
// process, and makes sure that nobody comes to write to the new file.
func (e *Executable) ready(ctx context.Context, th *ptrace.Thread, task Task) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", task.PID))
	if err != nil {
		return err
	}
	if e.words, err = parseMemoryMap(string(text)); err != nil {
		return err
	}
	brk, err := th.Syscall(ctx, unix.SYS_BRK, 0)
	if err != nil {
		return fmt.Errorf("process %d: brk: %w", task.PID, err)
	}
	for i, field := range memoryMapFields {
		if field == brkField {
			e.words[i] = brk
		}
	}
	if e.lease, err = reopen(e.Replacement, unix.O_RDONLY); err != nil {
		return err
	}
	// Whoever wants to write waits for the lease, for 45 s at most
	// (/proc/sys/fs/lease-break-time); the run is over by then.
	_, err = unix.FcntlInt(e.lease.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("process %d: its program %s is open for writing on --to", task.PID, printable(e.Path))
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // a file system without leases
		return fmt.Errorf("taking a lease on %s: %w", e.Replacement.Name(), err)
	}
	return nil
}

// close lets go of the lease.
func (e *Executable) close() {
	if e != nil && e.lease != nil {
		e.lease.Close()
		e.lease = nil
	}
}

// exchange is how a batch exchanges its process's program.
type exchange struct {
	fd  ptrace.Ref // the new one's descriptor
	arg ptrace.Ref // struct prctl_mm_map
}

// tryExe receives the new program and makes the call that exchanges it in
// vain.
func (p *program) tryExe(e *Executable) {
	x := &exchange{fd: p.receive(p.Zero(4), message{&e.Replacement})[0]}
	arg := make([]byte, 0, memoryMapSize+4) // Copy32 writes 8 bytes
	for _, w := range e.words {
		arg = binary.NativeEndian.AppendUint64(arg, w)
	}
	x.arg = p.Data(arg[:cap(arg)])
	p.Copy32(x.arg.Add(memoryMapExe), x.fd)
	p.exe = x

	tried := p.Label()
	busy := -int32(unix.EBUSY)
	p.BranchResult(p.setExe().Ignore(), uint32(busy), tried)
	// Once more, to report why; or, should nothing be mapped any more, why not.
	p.setExe()
	p.Syscall(unix.SYS_CLOSE, ptrace.Int(-1)).Name("exchanging the program: nothing of it is mapped")
	p.Bind(tried)
}

// setExe is the call.
func (p *program) setExe() *ptrace.Call {
	return p.Syscall(unix.SYS_PRCTL, ptrace.Const(unix.PR_SET_MM), ptrace.Const(unix.PR_SET_MM_MAP),
		p.exe.arg, ptrace.Const(memoryMapSize), ptrace.Const(0)).Name("prctl PR_SET_MM_MAP")
}

// exchangeExe does it, now that the old program is not mapped any more.
func (p *program) exchangeExe() {
	p.setExe()
	p.closeFD(p.exe.fd)
}
