package ptrace

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace/jump"
)

// stream is memory of this very process, in which the code is run as a tracer would
// have another do it. This needs no ptrace, which qemu-user does not have.
type stream struct {
	code, stack []byte
	start       uint64
}

// codeAt is where in its memory the code begins.
const codeAt = 0x530

func newStream(t *testing.T) *stream {
	s := &stream{}
	for _, mem := range []*[]byte{&s.code, &s.stack} {
		*mem = must(unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS))(t)
		t.Cleanup(func() { unix.Munmap(*mem) })
	}
	s.start = uint64(uintptr(unsafe.Pointer(&s.code[codeAt])))
	return s
}

// run goes through the code with the registers that enter sets, and checks that it
// ends with those that a thread had, and with its signal mask.
func (s *stream) run(t *testing.T, mapped uint64, enter func(*injection, *Regs)) {
	t.Helper()
	in := &injection{place: region{s.start, s.start + blockSize}}
	sp := uint64(uintptr(unsafe.Pointer(&s.stack[len(s.stack)/2])))
	thread, more := patterned(sp, uint64(jump.Landing()))
	var before, after uint64
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	every := allSignals
	check(t, sigprocmask(&every, &before))
	defer sigprocmask(&before, nil)
	// Another than it runs with, and one with which Go's signals stay away.
	// qemu-user keeps the last two for itself.
	mask := allSignals >> 2 &^ (sigBit(unix.SIGUSR2) | sigBit(unix.SIGKILL) | sigBit(unix.SIGSTOP))
	// Not writable and executable at once, so that the kernel sees to it that the
	// processor fetches what was written.
	check(t, unix.Mprotect(s.code, unix.PROT_READ|unix.PROT_WRITE))
	copy(s.code[codeAt:], block(&thread, &more, allSignals, mask, mapped, time.Millisecond))
	check(t, unix.Mprotect(s.code, unix.PROT_READ|unix.PROT_EXEC))
	r := thread
	enter(in, &r)
	from, to := toJump(&r), new(jump.Registers)
	jump.To(from, uintptr(programCounter(&r)), to)
	check(t, sigprocmask(&every, &after))
	if after != mask {
		t.Errorf("the signal mask is %#x, want %#x", after, mask)
	}
	landed(t, &thread, &more, to)
}

// program runs a program.
func (s *stream) program(t *testing.T, prog *Program) *Batch {
	t.Helper()
	size := prog.size()
	fd := must(unix.MemfdCreate("scratch", unix.MFD_CLOEXEC))(t)
	defer unix.Close(fd)
	check(t, unix.Ftruncate(fd, int64(size)))
	mem := must(mapShared(fd, size))(t)
	t.Cleanup(func() { unmap(mem) })
	theirs := must(mapShared(fd, size))(t) // which the code unmaps
	base := uint64(uintptr(unsafe.Pointer(&theirs[0])))
	check(t, prog.assemble(mem, base))
	s.run(t, size, func(in *injection, r *Regs) {
		in.call(r, modeRun, unix.SYS_RT_SIGPROCMASK, []uint64{unix.SIG_SETMASK, in.duringAddr(), 0, sigsetSize})
		setTable(r, base, base+prog.entryOffset(0))
	})
	b := &Batch{program: prog, base: base, mem: mem, in: &injection{th: &Thread{p: &Process{PID: unix.Getpid()}}}}
	if *b.done() != 1 {
		t.Error("the end was not told")
	}
	return b
}

func sigprocmask(set, old *uint64) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), sigsetSize, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func mappedAt(addr uint64) bool {
	var vec [1]byte
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(addr), 1, uintptr(unsafe.Pointer(&vec)))
	return e == 0
}

func TestStreamFlow(t *testing.T) {
	s := newStream(t)
	for _, c := range flows(unix.Getpid()) {
		t.Run(c.name, func(t *testing.T) {
			prog := NewProgram()
			c.make(prog)
			c.check(t, s.program(t, prog).failure())
		})
	}
}

func TestStreamGivesResults(t *testing.T) {
	prog, _, n, buf := pipeline()
	b := newStream(t).program(t, prog)
	if err := b.failure(); err != nil {
		t.Error(err)
	}
	if got := must(b.Result(n))(t); got != 15 {
		t.Errorf("read %d bytes, want 15", got)
	}
	if got := string(b.Bytes(buf, 14)); got != "through a pipe" {
		t.Errorf("read %q", got)
	}
}

// A program waits until the other end of a socket is shut down, as those of a swap
// do, and gets what was said before.
func TestStreamWaits(t *testing.T) {
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))(t)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	prog := NewProgram()
	ready := prog.Data([]byte{byte(pair[0]), byte(pair[0] >> 8), 0, 0, unix.POLLIN, 0, 0, 0})
	buf := prog.Zero(16)
	polled := prog.Syscall(unix.SYS_PPOLL, ready, Const(1), Const(0), Const(0), Const(sigsetSize))
	n := prog.Syscall(unix.SYS_READ, Int(pair[0]), buf, Const(16))
	tid, told := make(chan int, 1), make(chan error, 1)
	go func() {
		at := <-tid
		for { // until it waits
			if st, err := readStatus(at); err != nil || st.State == 'S' {
				break
			}
			time.Sleep(time.Millisecond)
		}
		_, err := unix.Write(pair[1], []byte("now"))
		told <- err
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid <- unix.Gettid()
	b := newStream(t).program(t, prog)
	check(t, <-told)
	check(t, b.failure())
	if got := must(b.Result(polled))(t); got != 1 {
		t.Errorf("ppoll gave %d, want 1", got)
	}
	if got := must(b.Result(n))(t); got != 3 || string(b.Bytes(buf, 3)) != "now" {
		t.Errorf("read %d bytes, %q", got, b.Bytes(buf, 3))
	}
}

// The code of a tracer that has died puts a thread back after its first call.
func TestStreamWithoutTracer(t *testing.T) {
	s := newStream(t)
	s.run(t, 0, func(in *injection, r *Regs) { in.call(r, modeSingle, unix.SYS_GETPID, nil) })
	size := pageSize
	there := must(unix.Mmap(-1, 0, int(3*size), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS))(t)
	at := uint64(uintptr(unsafe.Pointer(&there[0]))) + size
	s.run(t, size, func(in *injection, r *Regs) {
		in.call(r, modeMap, unix.SYS_MMAP, []uint64{at, size, unix.PROT_READ,
			unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED, ^uint64(0), 0})
	})
	if mappedAt(at) || !mappedAt(at-size) || !mappedAt(at+size) {
		t.Error("what was mapped is not what was unmapped")
	}
}
