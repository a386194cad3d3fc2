package rig

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Puppet is one thread or process of fixture/puppet.c, which makes the system
// calls that a test asks of it. What it holds is what the test made it open.
// A puppet serves one caller at a time.
type Puppet struct {
	PID int // seen from here; of a thread, that of its process
	t   T
	ch  *channel
	// channels is the directory of the channels' files here, and its name there.
	channels, channelsInside string
	spawned                  *int
}

const channelData = 128 << 10

// channel is struct channel of fixture/puppet.c.
type channel struct {
	state  atomic.Uint32
	op     uint32
	nr     int64
	arg    [6]int64
	ret    int64
	dataAt uint64
	tid    uint64
	data   [channelData]byte
	_      struct{}
}

const (
	asked    = 1
	answered = 2
)

const (
	opCall = iota
	opLoad
	opStore
	opSpawn
)

// StartPuppet starts a puppet, killed with all its children when t ends. Its
// cwd is /, its root the machine's; each of changes may alter the command, for
// namespaces or credentials of its own.
func StartPuppet(t T, changes ...func(*exec.Cmd)) *Puppet {
	t.Helper()
	dir := Dir(t)
	p := &Puppet{t: t, channels: dir, channelsInside: dir, spawned: new(int)}
	name := p.newChannel()
	cmd := exec.Command(Build(t).Puppet, filepath.Join(dir, name))
	cmd.Dir = "/"
	for _, change := range changes {
		change(cmd)
	}
	r := Begin(t, cmd)
	p.PID = r.PID
	t.Cleanup(func() { Kill(t, Tree(p.PID)...) })
	p.awaitFirst(r.Ended(), &r.err)
	return p
}

// newChannel makes the file of one more channel and maps it as p's.
func (p *Puppet) newChannel() (name string) {
	p.t.Helper()
	name = fmt.Sprintf("channel.%d", *p.spawned)
	*p.spawned++
	m := mapFile(p.t, filepath.Join(p.channels, name), int(unsafe.Sizeof(channel{})))
	p.ch = (*channel)(unsafe.Pointer(&m[0]))
	return name
}

// awaitFirst waits until the puppet is there to be asked.
func (p *Puppet) awaitFirst(ended <-chan struct{}, said *bytes.Buffer) {
	p.t.Helper()
	for end := time.Now().Add(patience); p.ch.state.Load() != answered; {
		futexWait(&p.ch.state, 0, 50*time.Millisecond)
		select {
		case <-ended:
			p.t.Fatalf("the puppet ended: %s", said)
		default:
		}
		if time.Now().After(end) {
			p.t.Fatalf("the puppet did not begin")
		}
	}
}

// Pending is a call that a puppet is in.
type Pending struct {
	p    *Puppet
	what string
}

func (p *Puppet) ask(op uint32, what string, nr int64, args ...int64) *Pending {
	p.ch.op, p.ch.nr = op, nr
	p.ch.arg = [6]int64{}
	copy(p.ch.arg[:], args)
	p.ch.state.Store(asked)
	futexWake(&p.ch.state)
	return &Pending{p: p, what: what}
}

// Done tells whether the call has returned.
func (c *Pending) Done() bool { return c.p.ch.state.Load() == answered }

// Wait waits for the call and returns its result: a negative one is an errno.
func (c *Pending) Wait() (int64, error) {
	c.p.t.Helper()
	for end := time.Now().Add(patience); !c.Done(); {
		futexWait(&c.p.ch.state, asked, 50*time.Millisecond)
		if !Alive(c.p.PID) {
			c.p.t.Fatalf("the puppet died in %s", c.what)
		}
		if time.Now().After(end) {
			c.p.t.Fatalf("%s of puppet %d did not return within %v:%s", c.what, c.p.PID, patience, KernelStack(c.p.PID))
		}
	}
	if ret := c.p.ch.ret; ret < 0 && ret > -4096 {
		return ret, unix.Errno(-ret)
	}
	return c.p.ch.ret, nil
}

// Start begins a system call in the puppet. An argument is an int, or a string
// or []byte: a buffer in the puppet with that content, from which Out reads
// what the call stored.
func (p *Puppet) Start(nr int, args ...any) *Pending {
	p.t.Helper()
	var values []int64
	at := 0
	for _, a := range args {
		switch v := a.(type) {
		case int:
			values = append(values, int64(v))
		case uint64:
			values = append(values, int64(v))
		case string:
			values = append(values, int64(p.ch.dataAt)+int64(at))
			at += align(copy(p.ch.data[at:], v+"\x00"))
		case []byte:
			values = append(values, int64(p.ch.dataAt)+int64(at))
			at += align(copy(p.ch.data[at:], v))
		default:
			p.t.Fatalf("puppet: an argument of type %T", a)
		}
	}
	if at > channelData {
		p.t.Fatalf("puppet: arguments of %d bytes", at)
	}
	return p.ask(opCall, fmt.Sprintf("system call %d%v", nr, values), int64(nr), values...)
}

func align(n int) int { return (n + 15) &^ 15 }

// Call makes a system call in the puppet and waits for it. Buffers are as for
// Start; a []byte gets back what the call stored.
func (p *Puppet) Call(nr int, args ...any) (int64, error) {
	p.t.Helper()
	ret, err := p.Start(nr, args...).Wait()
	at := 0
	for _, a := range args {
		switch v := a.(type) {
		case string:
			at += align(len(v) + 1)
		case []byte:
			copy(v, p.ch.data[at:])
			at += align(len(v))
		}
	}
	return ret, err
}

// Must is Call for what has to succeed.
func (p *Puppet) Must(nr int, args ...any) int {
	p.t.Helper()
	ret, err := p.Call(nr, args...)
	if err != nil {
		p.t.Fatalf("puppet %d: system call %d%v: %v", p.PID, nr, args, err)
	}
	return int(ret)
}

// Spawn makes a thread or process of the puppet by clone(2) with these flags:
// without CLONE_THREAD it is a process, and SIGCHLD belongs to the flags.
func (p *Puppet) Spawn(flags int) *Puppet {
	p.t.Helper()
	before := children(p.PID)
	child := &Puppet{PID: p.PID, t: p.t, channels: p.channels, channelsInside: p.channelsInside, spawned: p.spawned}
	name := child.newChannel()
	inside := filepath.Join(p.channelsInside, name)
	copy(p.ch.data[:], inside+"\x00")
	if _, err := p.ask(opSpawn, "clone", 0, int64(flags)).Wait(); err != nil {
		p.t.Fatalf("puppet %d: clone with flags %#x: %v", p.PID, flags, err)
	}
	child.awaitFirst(nil, nil)
	if flags&unix.CLONE_THREAD == 0 {
		for _, pid := range children(p.PID) {
			if !slices.Contains(before, pid) {
				child.PID = pid
			}
		}
	}
	return child
}

// TID is the thread's id in its own pid namespace.
func (p *Puppet) TID() int { return int(p.ch.tid) }

// Load reads memory of the puppet by loads of its own, so that a page that
// can't be had is fatal to it as it would be to a program.
func (p *Puppet) Load(addr uint64, n int) []byte {
	p.t.Helper()
	if _, err := p.ask(opLoad, "a load", 0, int64(addr), int64(n)).Wait(); err != nil {
		p.t.Fatalf("%v", err)
	}
	return bytes.Clone(p.ch.data[:n])
}

// Store writes memory of the puppet by stores of its own.
func (p *Puppet) Store(addr uint64, b []byte) {
	p.t.Helper()
	copy(p.ch.data[:], b)
	if _, err := p.ask(opStore, "a store", 0, int64(addr), int64(len(b))).Wait(); err != nil {
		p.t.Fatalf("%v", err)
	}
}

// The calls that tests make most, by name.

func (p *Puppet) Open(path string, flags int) int {
	p.t.Helper()
	return p.Must(unix.SYS_OPENAT, unix.AT_FDCWD, path, flags, 0o644)
}

func (p *Puppet) Close(fd int)      { p.t.Helper(); p.Must(unix.SYS_CLOSE, fd) }
func (p *Puppet) Chdir(path string) { p.t.Helper(); p.Must(unix.SYS_CHDIR, path) }
func (p *Puppet) Dup(fd int) int    { p.t.Helper(); return p.Must(unix.SYS_DUP, fd) }
func (p *Puppet) Offset(fd int) int { p.t.Helper(); return p.Seek(fd, 0, unix.SEEK_CUR) }
func (p *Puppet) FDFlags(fd int) int {
	p.t.Helper()
	return p.Must(unix.SYS_FCNTL, fd, unix.F_GETFD, 0)
}
func (p *Puppet) GetFlags(fd int) int {
	p.t.Helper()
	return p.Must(unix.SYS_FCNTL, fd, unix.F_GETFL, 0)
}

func (p *Puppet) Seek(fd, offset, whence int) int {
	p.t.Helper()
	return p.Must(unix.SYS_LSEEK, fd, offset, whence)
}

// Read returns up to n bytes from the descriptor's offset on.
func (p *Puppet) Read(fd, n int) string {
	p.t.Helper()
	b := make([]byte, n)
	return string(b[:p.Must(unix.SYS_READ, fd, b, n)])
}

// Write writes s at the descriptor's offset, all of it.
func (p *Puppet) Write(fd int, s string) {
	p.t.Helper()
	if n := p.Must(unix.SYS_WRITE, fd, []byte(s), len(s)); n != len(s) {
		p.t.Fatalf("puppet %d: write to %d: %d of %d bytes", p.PID, fd, n, len(s))
	}
}

// Mmap maps n bytes of a file, from its beginning.
func (p *Puppet) Mmap(fd, n, prot, flags int) uint64 {
	p.t.Helper()
	return uint64(p.Must(unix.SYS_MMAP, 0, n, prot, flags, fd, 0))
}

// Getcwd is the puppet's working directory as it sees it.
func (p *Puppet) Getcwd() string {
	p.t.Helper()
	b := make([]byte, 4096)
	p.Must(unix.SYS_GETCWD, b, len(b))
	return cString(b)
}

// Fstat asks the file system.
func (p *Puppet) Fstat(fd int) (st unix.Stat_t) {
	p.t.Helper()
	b := make([]byte, unsafe.Sizeof(st))
	p.Must(unix.SYS_FSTAT, fd, b)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st)), b)
	return st
}

// Getdents reads the next n bytes of a directory and returns the names in
// them; none at its end.
func (p *Puppet) Getdents(fd, n int) (names []string) {
	p.t.Helper()
	b := make([]byte, n)
	got := p.Must(unix.SYS_GETDENTS64, fd, b, n)
	_, _, names = unix.ParseDirent(b[:got], -1, nil)
	return names
}

// Link is what /proc says that a descriptor is, seen from here.
func (p *Puppet) Link(fd int) string {
	p.t.Helper()
	l, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.PID, fd))
	if err != nil {
		p.t.Fatalf("%v", err)
	}
	return l
}

// SameDescription tells whether two descriptors share one description.
func SameDescription(t T, a *Puppet, fdA int, b *Puppet, fdB int) bool {
	t.Helper()
	const kcmpFile = 0 // KCMP_FILE of include/uapi/linux/kcmp.h
	for {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a.PID), uintptr(b.PID), kcmpFile, uintptr(fdA), uintptr(fdB), 0)
		if errors.Is(errno, unix.EINTR) {
			runtime.Gosched()
			continue
		}
		if errno != 0 {
			t.Fatalf("kcmp %d:%d %d:%d: %v", a.PID, fdA, b.PID, fdB, errno)
		}
		return r == 0
	}
}

// Pipe makes a pipe.
func (p *Puppet) Pipe() (r, w int) {
	p.t.Helper()
	b := make([]byte, 8)
	p.Must(unix.SYS_PIPE2, b, 0)
	return int(binary.NativeEndian.Uint32(b)), int(binary.NativeEndian.Uint32(b[4:]))
}

// StartLoad begins a load of n bytes, which may wait for a page.
func (p *Puppet) StartLoad(addr uint64, n int) *Pending {
	return p.ask(opLoad, "a load", 0, int64(addr), int64(n))
}
