package test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// limited is a process at one of its limits, among others that have none.
type limited struct {
	*mounts
	t      *testing.T
	others []*rig.Puppet
	p      *rig.Puppet
	fd     int            // of each of them
	page   map[int]uint64 // of each: private, and not as in the file
}

func newLimited(t *testing.T) *limited {
	t.Helper()
	l := &limited{mounts: bindfsTwice(t), t: t, page: map[int]uint64{}}
	l.put(t, "dir/f", pages(4))
	for range 3 {
		p := rig.StartPuppet(t)
		p.Chdir(l.old + "/dir")
		l.fd = p.Open(l.old+"/dir/f", unix.O_RDWR)
		p.Seek(l.fd, 10, unix.SEEK_SET)
		l.page[p.PID] = p.Mmap(l.fd, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE) + page
		p.Store(l.page[p.PID], []byte("its own"))
		l.others = append(l.others, p)
	}
	// Neither the first nor the last.
	l.p = l.others[1]
	l.others = append(l.others[:1:1], l.others[2])
	return l
}

// whole checks that all are on the new mount, or all on the old, and have what
// they had.
func (l *limited) whole(swapped bool) {
	l.t.Helper()
	dev := l.oldDev
	if swapped {
		dev = l.newDev
	}
	for _, p := range append(l.others, l.p) {
		if got := p.Fstat(l.fd).Dev; got != dev {
			l.t.Errorf("process %d is on %s, want %s (old %s)", p.PID, devName(got), devName(dev), devName(l.oldDev))
		}
		if got := p.Offset(l.fd); got != 10 {
			l.t.Errorf("process %d is at %d", p.PID, got)
		}
		if got := p.Getcwd(); got != l.old+"/dir" {
			l.t.Errorf("process %d is in %s", p.PID, got)
		}
		if got := string(p.Load(l.page[p.PID], 7)); got != "its own" {
			l.t.Errorf("process %d has %q", p.PID, got)
		}
	}
}

// A run that fails in one process puts all of them back; and one that need not
// fail does not.
func TestSwapOfProcessesAtTheirLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		set  func(t *testing.T, p *rig.Puppet)
		says []string // in the error; nil if it is swapped
	}{
		{"no descriptor number free", func(t *testing.T, p *rig.Puppet) {
			limitFDs(t, p, openFDs(t, p))
		}, []string{"descriptors are open"}},
		{"one number too few", func(t *testing.T, p *rig.Puppet) {
			limitFDs(t, p, openFDs(t, p)+9)
		}, []string{"descriptors are open"}},
		{"just enough numbers", func(t *testing.T, p *rig.Puppet) {
			limitFDs(t, p, openFDs(t, p)+10)
		}, nil},
		{"a limit below the number of a file", func(t *testing.T, p *rig.Puppet) {
			p.Must(unix.SYS_DUP3, 3, 500, 0)
			limitFDs(t, p, 100)
		}, []string{"fd 500", "100"}},
		{"a limit below the number of something else", func(t *testing.T, p *rig.Puppet) {
			r, _ := p.Pipe()
			p.Must(unix.SYS_DUP3, r, 500, 0)
			limitFDs(t, p, 100)
		}, nil},
		{"no room for a page", func(t *testing.T, p *rig.Puppet) {
			limitMemory(t, p, vmSize(t, p))
		}, []string{"cannot allocate memory"}},
		{"nothing mapped below the stack", noStack, nil},
		{"no vDSO", func(t *testing.T, p *rig.Puppet) {
			start, end := mappingCalled(t, p.PID, "[vdso]")
			p.Must(unix.SYS_MUNMAP, start, end-start)
		}, []string{"vDSO"}},
		{"a vDSO whose text is another", func(t *testing.T, p *rig.Puppet) {
			start, end := mappingCalled(t, p.PID, "[vdso]")
			const all = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC
			p.Must(unix.SYS_MPROTECT, start, end-start, all)
			p.Store(start+64, []byte(strings.Repeat("\xcc", int(end-start)-64)))
		}, []string{"vDSO"}},
		{"a vDSO whose place something else has taken", func(t *testing.T, p *rig.Puppet) {
			start, end := mappingCalled(t, p.PID, "[vdso]")
			p.Must(unix.SYS_MMAP, start, end-start, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
		}, []string{"vDSO"}},
		{"a filter that kills for socketpair", func(t *testing.T, p *rig.Puppet) {
			killFor(p, unix.SYS_SOCKETPAIR)
		}, []string{"seccomp", "socketpair"}},
		{"a filter that kills for recvmsg and mmap", func(t *testing.T, p *rig.Puppet) {
			killFor(p, unix.SYS_RECVMSG, unix.SYS_MMAP)
		}, []string{"seccomp", "recvmsg", "mmap"}},
		{"a filter that kills for what restores its state", func(t *testing.T, p *rig.Puppet) {
			killFor(p, unix.SYS_RT_SIGPROCMASK)
		}, []string{"seccomp", "rt_sigprocmask"}},
		{"two filters that allow all that is needed", func(t *testing.T, p *rig.Puppet) {
			killFor(p, unix.SYS_GETPPID)
			killFor(p, unix.SYS_PTRACE, unix.SYS_CONNECT)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLimited(t)
			c.set(t, l.p)
			swap := func() rig.Result {
				return rig.Run(t, rig.Build(t).Swap, "run", "--timeout", "60s", "--from", l.old, "--to", l.new)
			}
			if c.says != nil {
				l.unchangedBy(t, l.p, func() { swap().Fails(t, 1, append(c.says, itoa(l.p.PID))...) })
			} else {
				swap().OK(t)
			}
			l.whole(c.says == nil)
			if strings.Contains(c.name, "filter") {
				if got := statusOf(t, l.p.PID, "Seccomp"); got != "2" {
					t.Errorf("its seccomp mode is %s", got)
				}
			}
		})
	}
}

func openFDs(t *testing.T, p *rig.Puppet) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func limitFDs(t *testing.T, p *rig.Puppet, n int) {
	t.Helper()
	limit := unix.Rlimit{Cur: uint64(n), Max: uint64(n) + 1000}
	if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatalf("limiting the descriptors of process %d: %v", p.PID, err)
	}
}

// noStack unmaps all of the stack but the page that is in use, and what a
// function may use below it.
func noStack(t *testing.T, p *rig.Puppet) {
	t.Helper()
	start, _ := mappingCalled(t, p.PID, "[stack]")
	var line []byte
	rig.Await(t, 10*time.Second, func() bool {
		line, _ = os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.PID))
		return len(strings.Fields(string(line))) == 9 // number, six arguments, stack pointer, program counter
	}, "the puppet waits")
	sp, err := strconv.ParseUint(strings.Fields(string(line))[7], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	const redZone = 128
	p.Must(unix.SYS_MUNMAP, start, (sp-redZone)&^(page-1)-start)
}

// mappingCalled finds the first mapping of that name.
func mappingCalled(t *testing.T, pid int, name string) (start, end uint64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, name+"\n") {
			if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
				t.Fatal(err)
			}
			return start, end
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return 0, 0
}

func statusOf(t *testing.T, pid int, key string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// killFor gives a puppet a seccomp filter that kills it for these calls.
func killFor(p *rig.Puppet, calls ...uint32) {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(calls) - i), K: nr})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS})
	at := uint64(p.Must(unix.SYS_MMAP, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0))
	program := binary.NativeEndian.AppendUint64(nil, uint64(len(filter))) // struct sock_fprog
	program = binary.NativeEndian.AppendUint64(program, at+16)
	size := len(filter) * int(unsafe.Sizeof(filter[0]))
	p.Store(at, append(program, unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), size)...))
	p.Must(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	p.Must(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, at)
}

// What happens between two steps of a run: it fails and all go back, or it does
// not and all are swapped.
func TestSwapDuringWhichSomethingHappens(t *testing.T) {
	t.Parallel()
	program := rig.BuildWith(t, "spfs-swap", "faults")
	const either = -1 // it depends on what the run was at
	for _, c := range []struct {
		name, point string
		happens     func(l *limited)
		status      int
	}{
		{"a file loses its name after the plan", "journal begun", func(l *limited) {
			if err := os.Remove(l.new + "/dir/f"); err != nil {
				l.t.Fatal(err)
			}
		}, either},
		{"another file takes its name", "journal begun", func(l *limited) {
			// Of the same size: bindfs, which goes by names, would have the old
			// mount's file cut off too.
			rig.Write(l.t, l.data+"/dir/g", strings.ToUpper(pages(4)))
			if err := os.Rename(l.data+"/dir/g", l.data+"/dir/f"); err != nil {
				l.t.Fatal(err)
			}
		}, either},
		{"a process ends before it is stopped", "journal begun", func(l *limited) { l.die() }, 0},
		{"a process ends once it is stopped", "all stopped", func(l *limited) { l.die() }, either},
		{"a process ends while it waits for the verdict", "all prepared", func(l *limited) { l.die() }, either},
		{"a process ends after the verdict", "committed", func(l *limited) { l.die() }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLimited(t)
			log := rig.Dir(t) + "/log"
			cmd := exec.Command(program, "run", "--timeout", "60s", "--from", l.old, "--to", l.new)
			cmd.Env = append(os.Environ(), "SPFS_FAULT="+c.point, "SPFS_FAULT_KILL=stop", "SPFS_FAULT_LOG="+log)
			r := rig.Begin(t, cmd)
			worker := 0
			rig.Await(t, 60*time.Second, func() bool {
				eachPoint(t, log, func(pid int, name string) {
					if name == c.point {
						worker = pid
					}
				})
				select {
				case <-r.Ended():
					t.Fatalf("it ended before: %s", r.Wait(t).Stderr)
				default:
				}
				return worker != 0 && rig.State(worker) == "T"
			}, "the worker is at %q", c.point)
			c.happens(l)
			if err := unix.Kill(worker, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			got := r.Wait(t)
			if c.status != either && got.Status != c.status {
				t.Errorf("status %d, want %d: %s", got.Status, c.status, got.Stderr)
			}
			swapped := devAt(t, 0, l.old) == l.newDev
			if swapped != (got.Status == 0) {
				t.Errorf("swapped is %v, the status %d: %s", swapped, got.Status, got.Stderr)
			}
			l.whole(swapped)
		})
	}
}

// die kills the process at its limit.
func (l *limited) die() {
	l.t.Helper()
	rig.Kill(l.t, l.p.PID)
	l.p = l.others[0]
}

// A task that waits in the kernel and can't be stopped is named when the time is
// over, and nothing is changed: here a parent that has lent its child all until that
// execs or ends (vfork).
func TestSwapOfTaskThatCannotBeStopped(t *testing.T) {
	t.Parallel()
	l := newLimited(t)
	// The child answers in the parent's stead.
	l.p.Must(unix.SYS_CLONE, unix.CLONE_VFORK|fork, 0, 0, 0, 0)
	child := rig.Tree(l.p.PID)[1]
	rig.Await(t, 10*time.Second, func() bool { return rig.State(l.p.PID) == "D" }, "the parent waits")
	l.unchangedBy(t, l.p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--timeout", "3s", "--from", l.old, "--to", l.new).Fails(t, 1, itoa(l.p.PID), "state D")
	})
	rig.Kill(t, child)
	rig.Await(t, 10*time.Second, func() bool { return rig.State(l.p.PID) == "S" }, "the parent goes on")
	l.whole(false)
	l.swap(t)
	l.whole(true)
}
