package ptrace

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Process is a process all of whose threads are stopped.
type Process struct {
	PID     int
	Threads []*Thread // in no order; those that died meanwhile are left out

	t      *Tracer
	mem    int    // /proc/PID/mem; -1 once released
	tasks  int    // /proc/PID/task
	denied int    // how often it was refused, or said to be gone, for no reason
	lost   bool   // a thread that was seized is gone
	vdso   region // where code may be put; zero until looked for
	loose  bool   // a thread was let go in the middle of a batch
	batch  *Batch // under way in the vDSO; nil if none

	stations *stations // nil if there are none
	left     region    // stations of a tracer that died, while they are cleaned up

	// remains is the leader if it has exited before the others. It is ours
	// until it has been waited for.
	remains *Thread
}

// Thread is one stopped thread of a [Process].
type Thread struct {
	TID          int
	GroupStopped bool // its process is stopped by SIGSTOP or the like, and will be again on release

	p       *Process
	regs    Regs // as they must be for the thread to go on as before
	stopped bool
	settled bool // while it is seized: it has come to rest, and regs are read
	gone    bool
	hung    bool   // it hung in the kernel when it was caught
	filters answer // whether it has seccomp filters
	seen    *stop  // reported, and not looked at yet
	station region // where else code of it may be put; zero if nowhere
	batch   *Batch // under way there; nil if none
}

// Process returns the process the thread is of.
func (th *Thread) Process() *Process { return th.p }

// Regs returns the thread's registers as they were when it stopped.
func (th *Thread) Regs() Regs { return th.regs }

// InSyscall returns the number of the system call that the thread was
// interrupted in, and whether it was in one at all.
func (th *Thread) InSyscall() (nr int, ok bool) { return interrupted(&th.regs) }

// Status reads /proc/TID/status: what a batch on this thread may run into is
// there, above all seccomp filters.
func (th *Thread) Status() (*Status, error) {
	st, err := readStatus(th.TID)
	if err != nil {
		return nil, fmt.Errorf("status of thread %d of process %d: %w", th.TID, th.p.PID, err)
	}
	return st, nil
}

// Leader returns the thread whose number is the process's, or any other if
// the leader has exited before.
func (p *Process) Leader() *Thread {
	for _, th := range p.Threads {
		if th.TID == p.PID {
			return th
		}
	}
	return p.Threads[0]
}

// ReadMem reads len(b) bytes of the process's memory at addr.
func (p *Process) ReadMem(addr uint64, b []byte) error {
	return p.t.Do(func() error { return p.transfer("read", unix.Pread, addr, b) })
}

// WriteMem writes b to the process's memory at addr, also where it is mapped
// read-only and private: the process then gets its own copy of the page.
func (p *Process) WriteMem(addr uint64, b []byte) error {
	return p.t.Do(func() error { return p.transfer("write", unix.Pwrite, addr, b) })
}

func (p *Process) transfer(verb string, io func(int, []byte, int64) (int, error), addr uint64, b []byte) error {
	for len(b) > 0 {
		n, err := io(p.mem, b, int64(addr))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = ErrGone // the address space has no users left
		}
		if err != nil {
			return fmt.Errorf("%s %d bytes of process %d's memory at %#x: %w", verb, len(b), p.PID, addr, err)
		}
		addr, b = addr+uint64(n), b[n:]
	}
	return nil
}

// Release lets every thread go on: interrupted system calls are restarted,
// signals that arrived meanwhile are delivered, and a process that was stopped
// by a signal is stopped again. A batch under way is broken off. What has died
// meanwhile is no error.
func (p *Process) Release() error {
	return p.t.Do(func() error {
		if p.tasks < 0 {
			return nil
		}
		var errs []error
		ctx, cancel := context.WithTimeout(context.Background(), abandonTime)
		defer cancel()
		if p.batch != nil {
			errs = append(errs, p.batch.abandon(ctx))
		}
		for _, th := range p.Threads {
			if th.batch != nil {
				errs = append(errs, th.batch.abandon(ctx))
			}
		}
		errs = append(errs, p.dismiss(ctx))
		wait := reapTime
		if p.hangs() {
			wait = 0
		}
		errs = append(errs, p.detach(wait))
		return errors.Join(errs...)
	})
}

// reapTime bounds the wait for threads that die while they are released.
const reapTime = 2 * time.Second

// detach lets every thread go. Those that are not stopped are waited for up to
// patience, and left to the tracer to let go later.
func (p *Process) detach(patience time.Duration) error {
	var errs []error
	var late []*Thread
	for _, th := range p.Threads {
		if th.gone {
			continue
		}
		if !th.stopped { // what it stops with is still to be seen
			late = append(late, th)
			continue
		}
		err := requestInt(unix.PTRACE_DETACH, th.TID, 0)
		switch {
		case err == nil:
		case err == unix.ESRCH: // killed
			late = append(late, th)
		default:
			errs = append(errs, fmt.Errorf("let go thread %d of process %d: %w", th.TID, p.PID, err))
		}
		th.stopped = false
	}
	// Until their tracer has seen the end of killed threads, the process
	// stays a zombie that its parent is not told of (kernel/exit.c,
	// wait_task_zombie). The leader's end is reported after all others'.
	var b backoff
	for deadline := time.Now().Add(patience); ; b.wait() {
		if late = release(late); len(late) == 0 || time.Now().After(deadline) {
			break
		}
	}
	p.t.strays = append(p.t.strays, late...)
	if p.remains != nil {
		p.remains.gone = false
		p.t.strays = append(p.t.strays, p.remains)
		p.remains = nil
	}
	if p.mem >= 0 {
		unix.Close(p.mem)
	}
	unix.Close(p.tasks)
	p.mem, p.tasks = -1, -1
	return errors.Join(errs...)
}

// proc is the path of a file of /proc that tells of the process. It is reached
// through a thread that lives: a leader that has exited before its threads
// has no memory any more.
func (p *Process) proc(file string) string {
	return fmt.Sprintf("/proc/%d/%s", p.Threads[0].TID, file)
}

// countTasks returns how many threads the process has (fs/proc/base.c,
// proc_task_getattr).
func (p *Process) countTasks() (int, error) {
	var st unix.Stat_t
	err := unix.Fstat(p.tasks, &st)
	return int(st.Nlink) - 2, err
}

// deliverable is the signal to give a thread that is detached in this stop.
func (s stop) deliverable() unix.Signal {
	if s.kind == stopSignal {
		return s.sig
	}
	return 0
}

// listTasks returns the numbers of the process's threads.
func (p *Process) listTasks(buf []byte) ([]int, error) {
	if _, err := unix.Seek(p.tasks, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var tids []int
	for {
		n, err := eintr.Get(func() (int, error) { return unix.Getdents(p.tasks, buf) })
		if err != nil || n == 0 {
			return tids, err
		}
		for rest := buf[:n]; len(rest) > 0; {
			var names []string
			var used int
			used, _, names = unix.ParseDirent(rest, -1, nil)
			if used == 0 {
				break
			}
			rest = rest[used:]
			for _, name := range names {
				tid, err := strconv.Atoi(name)
				if err != nil || tid <= 0 {
					return nil, fmt.Errorf("task %q: not a number", name)
				}
				tids = append(tids, tid)
			}
		}
	}
}

// readMem and writeMem are ReadMem and WriteMem for callers on the thread.
func (p *Process) readMem(addr uint64, b []byte) error {
	return p.transfer("read", unix.Pread, addr, b)
}

func (p *Process) writeMem(addr uint64, b []byte) error {
	return p.transfer("write", unix.Pwrite, addr, b)
}
