package test

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// include/uapi/asm-generic/fcntl.h; golang.org/x/sys does not have them.
const (
	fSetSig       = 10
	fGetSig       = 11
	fGetOwnerUIDs = 17

	ownerTID, ownerPID, ownerPGRP = 0, 1, 2 // F_OWNER_…
)

// signals is what a description says of the signals that it sends.
type signals struct{ kind, pid, signal, uid, euid int }

func signalsOf(p *rig.Puppet, fd int) (s signals) {
	owner, ids := make([]byte, 8), make([]byte, 8)
	p.Must(unix.SYS_FCNTL, fd, unix.F_GETOWN_EX, owner)
	p.Must(unix.SYS_FCNTL, fd, fGetOwnerUIDs, ids)
	word := func(b []byte) int { return int(int32(binary.NativeEndian.Uint32(b))) }
	return signals{word(owner), word(owner[4:]), p.Must(unix.SYS_FCNTL, fd, fGetSig, 0), word(ids), word(ids[4:])}
}

func TestSwapKeepsSignalOwners(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	for _, c := range []struct {
		name                 string
		uid                  uint32
		kind, signal, otherF int // otherF is a flag to open with
		ended                bool
	}{
		{"a process", 0, ownerPID, 0, 0, false},
		{"a process, another's signal, and O_ASYNC", 0, ownerPID, 40, unix.O_ASYNC, false},
		{"a thread", 0, ownerTID, 41, 0, false},
		{"a process group", 0, ownerPGRP, 0, 0, false},
		{"of a user without rights", 4242, ownerPID, 42, 0, false},
		{"a process that has ended", 0, ownerPID, 43, 0, true},
	} {
		p := rig.StartPuppet(t, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		})
		target := p.PID
		var gone <-chan struct{}
		if c.ended {
			r := rig.Begin(t, exec.Command("sleep", "1000"))
			target, gone = r.PID, r.Ended()
		}
		fd := p.Open(m.old+"/f", unix.O_RDONLY|c.otherF)
		if c.uid != 0 {
			p.Must(unix.SYS_SETRESUID, 0, int(c.uid), 0) // real root still
		}
		owner := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, uint32(c.kind)), uint32(target))
		p.Must(unix.SYS_FCNTL, fd, unix.F_SETOWN_EX, owner)
		p.Must(unix.SYS_FCNTL, fd, fSetSig, c.signal)
		if c.ended {
			rig.Kill(t, target)
			<-gone // a zombie is one still
		}
		before, flags := signalsOf(p, fd), p.GetFlags(fd)
		if want := (signals{c.kind, target, c.signal, 0, int(c.uid)}); before != want && !c.ended {
			t.Fatalf("%s: before, the signals are %+v, want %+v", c.name, before, want)
		}
		m.swap(t, "--pid", itoa(p.PID))
		if got := p.Fstat(fd).Dev; got != m.newDev {
			t.Errorf("%s: fd %d is on %s, want %s", c.name, fd, devName(got), devName(m.newDev))
		}
		got := signalsOf(p, fd)
		if c.ended {
			got.kind, got.uid, got.euid = before.kind, before.uid, before.euid // of nobody
		}
		if got != before {
			t.Errorf("%s: the signals are %+v, want %+v", c.name, got, before)
		}
		if got := p.GetFlags(fd); got != flags {
			t.Errorf("%s: flags %#o, want %#o", c.name, got, flags)
		}
	}
}

// A lease stays one, and its holder is told when it is broken: by the signal
// that it asked for, with the number of its descriptor.
func TestSwapKeepsLeases(t *testing.T) {
	t.Parallel()
	const signal = 40
	for name, c := range map[string]struct{ flags, kind int }{
		"read":  {unix.O_RDONLY, unix.F_RDLCK},
		"write": {unix.O_RDWR, unix.F_WRLCK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			m.put(t, "f", "x")
			p := rig.StartPuppet(t)
			p.Must(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, sigset(signal), 0, 8)
			fd := p.Must(unix.SYS_DUP3, p.Open(m.old+"/f", c.flags), 77, 0)
			p.Close(fdBefore(p, fd))
			p.Must(unix.SYS_FCNTL, fd, unix.F_SETLEASE, c.kind)
			p.Must(unix.SYS_FCNTL, fd, fSetSig, signal)
			before := signalsOf(p, fd)

			m.swap(t)
			m.moved(t, p, fd, "f")
			if got := p.Must(unix.SYS_FCNTL, fd, unix.F_GETLEASE, 0); got != c.kind {
				t.Errorf("the lease is %d, want %d", got, c.kind)
			}
			if got := signalsOf(p, fd); got != before || got.pid != p.PID {
				t.Errorf("the signals are %+v, want %+v", got, before)
			}
			stranger := rig.StartPuppet(t)
			if _, err := stranger.Call(unix.SYS_OPENAT, unix.AT_FDCWD, m.new+"/f", unix.O_WRONLY|unix.O_NONBLOCK, 0); !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("an open against the lease: %v", err)
			}
			info := make([]byte, 128)
			if got := p.Must(unix.SYS_RT_SIGTIMEDWAIT, sigset(signal), info, timespec(10*time.Second), 8); got != signal {
				t.Errorf("signal %d, want %d", got, signal)
			}
			if got := int(binary.NativeEndian.Uint32(info[24:])); got != fd { // si_fd
				t.Errorf("the signal names fd %d, want %d", got, fd)
			}
			p.Must(unix.SYS_FCNTL, fd, unix.F_SETLEASE, unix.F_UNLCK)
			stranger.Open(m.new+"/f", unix.O_WRONLY)
		})
	}
}

// fdBefore is the descriptor that fd is a duplicate of: the lowest of its
// description.
func fdBefore(p *rig.Puppet, fd int) int {
	for n := range fd {
		if _, err := p.Call(unix.SYS_FCNTL, n, unix.F_GETFD, 0); err == nil && p.Link(n) == p.Link(fd) {
			return n
		}
	}
	return fd
}

func sigset(signal int) []byte {
	return binary.NativeEndian.AppendUint64(nil, 1<<(signal-1))
}

// A lease that can't be had there takes everyone back.
func TestSwapOfLeaseThatCannotBe(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	p, stranger := rig.StartPuppet(t), rig.StartPuppet(t)
	fd := p.Open(m.old+"/f", unix.O_RDONLY)
	p.Must(unix.SYS_FCNTL, fd, unix.F_SETLEASE, unix.F_RDLCK)
	writes := stranger.Open(m.new+"/f", unix.O_WRONLY)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "lease")
	})
	if got := p.Must(unix.SYS_FCNTL, fd, unix.F_GETLEASE, 0); got != unix.F_RDLCK {
		t.Errorf("the lease is %d, want %d", got, unix.F_RDLCK)
	}
	stranger.Close(writes)
	m.swap(t)
	if got := p.Must(unix.SYS_FCNTL, fd, unix.F_GETLEASE, 0); got != unix.F_RDLCK {
		t.Errorf("the lease is %d, want %d", got, unix.F_RDLCK)
	}
}
