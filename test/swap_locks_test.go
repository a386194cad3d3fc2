package test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// lockRange calls fcntl(2) with a struct flock in a puppet: command is F_SETLK
// or one of its kin. n is 0 for all that follows. It returns the struct as
// fcntl left it.
func lockRange(t *testing.T, p *rig.Puppet, fd, command, kind, start, n int) (unix.Flock_t, error) {
	t.Helper()
	f := unix.Flock_t{Type: int16(kind), Start: int64(start), Len: int64(n)}
	b := append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))...)
	_, err := p.Call(unix.SYS_FCNTL, fd, command, b)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f)), b)
	return f, err
}

// locked takes a lock and fails the test if it can't be had.
func locked(t *testing.T, p *rig.Puppet, fd, command, kind, start, n int) {
	t.Helper()
	if _, err := lockRange(t, p, fd, command, kind, start, n); err != nil {
		t.Fatalf("locking %d+%d of fd %d: %v", start, n, fd, err)
	}
}

// inTheWay checks who holds the first lock that is in the way of an exclusive
// one on n bytes: -1 is a description, 0 nobody.
func inTheWay(t *testing.T, p *rig.Puppet, fd, start, n, holder int) {
	t.Helper()
	f, err := lockRange(t, p, fd, unix.F_GETLK, unix.F_WRLCK, start, n)
	got := int(f.Pid)
	if f.Type == unix.F_UNLCK {
		got = 0
	}
	if err != nil || got != holder {
		t.Errorf("in the way of a lock of bytes %d+%d is process %d (%v), want %d", start, n, got, err, holder)
	}
}

func TestSwapKeepsFlock(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "exclusive", "x")
	m.put(t, "shared", "x")
	p := rig.StartPuppet(t)
	exclusive := p.Open(m.old+"/exclusive", unix.O_RDWR)
	p.Must(unix.SYS_FLOCK, exclusive, unix.LOCK_EX)
	child := p.Spawn(fork) // has the same description, and so the lock
	shared := p.Open(m.old+"/shared", unix.O_RDONLY)
	p.Must(unix.SYS_FLOCK, shared, unix.LOCK_SH)
	p.Close(exclusive)

	m.swap(t)
	m.moved(t, child, exclusive, "exclusive")
	other := rig.StartPuppet(t)
	try := func(name string, how int) error {
		fd := other.Open(m.new+"/"+name, unix.O_RDWR)
		defer other.Close(fd)
		_, err := other.Call(unix.SYS_FLOCK, fd, how|unix.LOCK_NB)
		return err
	}
	if err := try("exclusive", unix.LOCK_SH); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a file that is locked exclusively: another lock says %v", err)
	}
	if err := try("shared", unix.LOCK_EX); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a file with a shared lock: an exclusive one says %v", err)
	}
	if err := try("shared", unix.LOCK_SH); err != nil {
		t.Errorf("a file with a shared lock: another says %v", err)
	}
	child.Must(unix.SYS_FLOCK, exclusive, unix.LOCK_UN)
	p.Close(shared)
	for _, name := range []string{"exclusive", "shared"} {
		if err := try(name, unix.LOCK_EX); err != nil {
			t.Errorf("%s: released, but a lock says %v", name, err)
		}
	}
}

func TestSwapKeepsOFDLocks(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	other := p.Open(m.old+"/f", unix.O_RDWR) // of the same process, and yet another's
	locked(t, p, fd, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 4)
	locked(t, p, fd, unix.F_OFD_SETLK, unix.F_RDLCK, 10, 0)
	locked(t, p, other, unix.F_OFD_SETLK, unix.F_RDLCK, 20, 5)

	m.swap(t)
	for _, d := range []int{fd, other} {
		m.moved(t, p, d, "f")
	}
	stranger := rig.StartPuppet(t)
	s := stranger.Open(m.new+"/f", unix.O_RDWR)
	inTheWay(t, stranger, s, 0, 4, -1)
	inTheWay(t, stranger, s, 4, 6, 0)
	inTheWay(t, stranger, s, 100, 1, -1)
	if _, err := lockRange(t, p, other, unix.F_OFD_SETLK, unix.F_WRLCK, 2, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a lock of another description of the process: %v", err)
	}
	locked(t, p, fd, unix.F_OFD_SETLK, unix.F_UNLCK, 0, 0)
	inTheWay(t, stranger, s, 0, 20, 0)
	inTheWay(t, stranger, s, 24, 1, -1)
	p.Close(other)
	inTheWay(t, stranger, s, 0, 0, 0)
}

// A process's own locks stay its own, in spite of all else of the file that is
// replaced at the same time: closing any of it would drop them.
func TestSwapKeepsPOSIXLocks(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", pages(2))
	m.put(t, "g", "x")
	p := rig.StartPuppet(t)
	first := p.Open(m.old+"/f", unix.O_RDWR)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	same := p.Dup(fd)
	last := p.Open(m.old+"/f", unix.O_RDONLY)
	p.Open(m.old+"/g", unix.O_RDONLY)
	at := p.Mmap(fd, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	locked(t, p, fd, unix.F_SETLK, unix.F_WRLCK, 0, 4)
	locked(t, p, last, unix.F_SETLK, unix.F_RDLCK, 10, 10)
	locked(t, p, first, unix.F_SETLK, unix.F_WRLCK, 4096, 0)
	child := p.Spawn(fork) // shares the descriptions, and has no locks
	locked(t, child, same, unix.F_SETLK, unix.F_WRLCK, 100, 1)
	thread := p.Spawn(thread) // shares the table, and so the locks
	before := rig.CountFDs(t, child.PID)

	m.swap(t)
	for _, d := range []int{first, fd, same, last} {
		m.moved(t, p, d, "f")
		m.moved(t, child, d, "f")
	}
	stranger := rig.StartPuppet(t)
	s := stranger.Open(m.new+"/f", unix.O_RDWR)
	check := func() {
		t.Helper()
		inTheWay(t, stranger, s, 0, 4, p.PID)
		inTheWay(t, stranger, s, 4, 6, 0)
		inTheWay(t, stranger, s, 20, 80, 0)
		inTheWay(t, stranger, s, 100, 1, child.PID)
		inTheWay(t, stranger, s, 1<<40, 1, p.PID)
	}
	check()
	inTheWay(t, stranger, s, 15, 1, p.PID)
	if f, err := lockRange(t, stranger, s, unix.F_GETLK, unix.F_RDLCK, 10, 10); err != nil || f.Type != unix.F_UNLCK {
		t.Errorf("a read lock is in the way of another: %+v (%v)", f, err)
	}
	// Whose they are shows in who is not kept out by them, and who can give
	// them back.
	locked(t, thread, first, unix.F_SETLK, unix.F_UNLCK, 10, 10)
	inTheWay(t, stranger, s, 10, 10, 0)
	child.Close(first)
	inTheWay(t, stranger, s, 100, 1, 0)
	inTheWay(t, stranger, s, 0, 4, p.PID)
	p.Store(at, []byte("written"))
	p.Close(last)
	inTheWay(t, stranger, s, 0, 0, 0)
	if n := rig.CountFDs(t, child.PID); n != before-1 {
		t.Errorf("the child has %d descriptors, and had %d", n, before)
	}
}

// A thread with a descriptor table of its own has locks of its own.
func TestSwapKeepsLocksOfThreads(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	locked(t, p, p.Open(m.old+"/f", unix.O_RDWR), unix.F_SETLK, unix.F_WRLCK, 0, 2)
	th := p.Spawn(threadOf | unix.CLONE_FS)
	fd := th.Open(m.old+"/f", unix.O_RDWR)
	locked(t, th, fd, unix.F_SETLK, unix.F_WRLCK, 4, 2)
	m.swap(t)
	stranger := rig.StartPuppet(t)
	s := stranger.Open(m.new+"/f", unix.O_RDWR)
	inTheWay(t, stranger, s, 0, 2, p.PID)
	inTheWay(t, stranger, s, 4, 2, p.PID)
	th.Close(fd)
	inTheWay(t, stranger, s, 0, 2, p.PID)
	inTheWay(t, stranger, s, 4, 2, 0)
}

// Who waits for a lock goes on waiting for it on the new mount.
func TestSwapKeepsWaitersForLocks(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	m.put(t, "g", "x")
	holder, waiter, flocker := rig.StartPuppet(t), rig.StartPuppet(t), rig.StartPuppet(t)
	held := holder.Open(m.old+"/f", unix.O_RDWR)
	locked(t, holder, held, unix.F_SETLK, unix.F_WRLCK, 0, 0)
	heldToo := holder.Open(m.old+"/g", unix.O_RDWR)
	holder.Must(unix.SYS_FLOCK, heldToo, unix.LOCK_EX)
	fd := waiter.Open(m.old+"/f", unix.O_RDWR)
	f := unix.Flock_t{Type: unix.F_WRLCK}
	waits := waiter.Start(unix.SYS_FCNTL, fd, unix.F_SETLKW, append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))...))
	flocks := flocker.Start(unix.SYS_FLOCK, flocker.Open(m.old+"/g", unix.O_RDONLY), unix.LOCK_SH)
	awaitCall(t, waiter, unix.SYS_FCNTL)
	awaitCall(t, flocker, unix.SYS_FLOCK)

	m.swap(t)
	if waits.Done() || flocks.Done() {
		t.Fatal("a lock that somebody holds was given to another")
	}
	locked(t, holder, held, unix.F_SETLK, unix.F_UNLCK, 0, 0)
	holder.Close(heldToo)
	for what, call := range map[string]*rig.Pending{"fcntl": waits, "flock": flocks} {
		if _, err := call.Wait(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	inTheWay(t, holder, held, 0, 0, waiter.PID)
}

// awaitCall waits until a puppet is in a system call.
func awaitCall(t *testing.T, p *rig.Puppet, nr int) {
	t.Helper()
	rig.Await(t, 10*time.Second, func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.PID))
		return strings.HasPrefix(string(b), itoa(nr)+" ")
	}, "the puppet is in system call %d", nr)
}

// If a lock can't be had on the new mount, everything stays as it was.
func TestSwapOfLocksThatAreTaken(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]int{"F_SETLK": unix.F_SETLK, "F_OFD_SETLK": unix.F_OFD_SETLK, "flock": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "x")
			m.put(t, "g", "x")
			p, stranger := rig.StartPuppet(t), rig.StartPuppet(t)
			other := p.Open(m.old+"/g", unix.O_RDWR)
			locked(t, p, other, unix.F_SETLK, unix.F_WRLCK, 0, 0)
			fd := p.Open(m.old+"/f", unix.O_RDWR)
			taken := stranger.Open(m.new+"/f", unix.O_RDWR)
			if command == 0 {
				p.Must(unix.SYS_FLOCK, fd, unix.LOCK_EX)
				stranger.Must(unix.SYS_FLOCK, taken, unix.LOCK_EX)
			} else {
				locked(t, p, fd, command, unix.F_WRLCK, 0, 0)
				locked(t, stranger, taken, unix.F_SETLK, unix.F_WRLCK, 0, 0)
			}
			m.unchangedBy(t, p, func() {
				rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "lock")
			})
			for _, d := range []int{fd, other} {
				if got := p.Fstat(d).Dev; got != m.oldDev {
					t.Errorf("fd %d is on %s, want %s", d, devName(got), devName(m.oldDev))
				}
			}
			inTheWay(t, stranger, stranger.Open(m.old+"/g", unix.O_RDWR), 0, 0, p.PID)
			inTheWay(t, stranger, stranger.Open(m.new+"/g", unix.O_RDWR), 0, 0, 0)
			stranger.Close(taken)
			m.swap(t)
			m.moved(t, p, fd, "f")
			inTheWay(t, stranger, stranger.Open(m.new+"/g", unix.O_RDWR), 0, 0, p.PID)
		})
	}
}

// A daemon that keeps locks itself is asked to, with the process's name.
func TestSwapOntoDaemonThatKeepsLocks(t *testing.T) {
	t.Parallel()
	top := rig.Dir(t)
	m := &mounts{data: rig.Mkdir(t, top, "data"), old: rig.Mkdir(t, top, "old"), new: rig.Mkdir(t, top, "new")}
	rig.Bindfs(t, m.data, m.old)
	rig.Mount(t, m.new, "--mode", "proxy", "--dir", m.data)
	m.note(t)
	m.put(t, "f", "0123456789")
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDWR)
	locked(t, p, fd, unix.F_SETLK, unix.F_WRLCK, 0, 4)
	locked(t, p, fd, unix.F_SETLK, unix.F_RDLCK, 6, 2)
	m.swap(t)
	m.moved(t, p, fd, "f")
	stranger := rig.StartPuppet(t)
	s := stranger.Open(m.new+"/f", unix.O_RDWR)
	for at, kind := range map[int]int16{0: unix.F_WRLCK, 4: unix.F_UNLCK, 6: unix.F_RDLCK, 8: unix.F_UNLCK} {
		if f, err := lockRange(t, stranger, s, unix.F_GETLK, unix.F_WRLCK, at, 1); err != nil || f.Type != kind {
			t.Errorf("at %d: in the way is %+v (%v), want the type %d", at, f, err, kind)
		}
	}
	locked(t, p, fd, unix.F_SETLK, unix.F_UNLCK, 0, 0)
	locked(t, stranger, s, unix.F_SETLK, unix.F_WRLCK, 0, 0)
}
