package devfuse

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/fdpass"
	"spfs/internal/ptrace"
)

// Exchange puts, in a stopped process, placeholders over its /dev/fuse
// descriptors, or with back the devices over the placeholders. Descriptors
// that lead there already are left alone, so that it can be called again after
// an error; one that leads to neither is an error.
func Exchange(ctx context.Context, p *ptrace.Process, all []*Description, back bool) error {
	var over []Holder
	var files []*os.File
	for _, d := range all {
		from, to := d.file, d.placeholder
		if back {
			from, to = to, from
		}
		for _, h := range d.Holders {
			if h.PID != p.PID {
				continue
			}
			done, err := leadsTo(h, to)
			if err != nil {
				return err
			}
			if done {
				continue
			}
			if ok, err := leadsTo(h, from); err != nil {
				return err
			} else if !ok {
				return fmt.Errorf("descriptor %d of process %d is not what it was", h.FD, h.PID)
			}
			over, files = append(over, h), append(files, to)
		}
	}
	for len(over) > 0 {
		n := min(len(over), batchSize)
		if err := exchange(ctx, p, over[:n], files[:n]); err != nil {
			return err
		}
		over, files = over[n:], files[n:]
	}
	return nil
}

// batchSize bounds how many further descriptors the process needs for a
// moment.
const batchSize = 16

func exchange(ctx context.Context, p *ptrace.Process, over []Holder, files []*os.File) error {
	program := ptrace.NewProgram()
	channel := fdpass.New(program)
	defer channel.Close()
	fds := channel.Receive(files)
	for i, h := range over {
		flags := 0
		if h.CloseOnExec {
			flags = unix.O_CLOEXEC
		}
		program.Syscall(unix.SYS_DUP3, fds[i].Int32(), ptrace.Int(h.FD), ptrace.Int(flags)).
			Name("dup3 over descriptor " + strconv.Itoa(h.FD)).Ignore()
	}
	for _, fd := range fds {
		program.Syscall(unix.SYS_CLOSE, fd.Int32()).Ignore()
	}
	channel.Finish()
	batch, err := p.Leader().Start(ctx, program)
	if err != nil {
		return fmt.Errorf("process %d: exchanging its FUSE devices: %w", p.PID, err)
	}
	supplied := channel.Supply(ctx, batch, p.PID)
	if err := batch.Wait(ctx); err != nil {
		return fmt.Errorf("process %d: exchanging its FUSE devices: %w", p.PID, err)
	}
	if supplied != nil {
		return supplied
	}
	for i, h := range over {
		if ok, err := leadsTo(h, files[i]); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("process %d: its descriptor %d could not be exchanged", p.PID, h.FD)
		}
	}
	return nil
}

// leadsTo says whether a process's descriptor is one of our file's description.
func leadsTo(h Holder, f *os.File) (bool, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var differ uintptr
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		const kcmpFile = 0
		differ, _, errno = unix.Syscall6(unix.SYS_KCMP, uintptr(h.PID), uintptr(unix.Getpid()), kcmpFile, uintptr(h.FD), fd, 0)
	}); err != nil {
		return false, err
	}
	if errno == unix.EBADF {
		return false, nil
	}
	if errno != 0 {
		return false, fmt.Errorf("comparing descriptor %d of process %d: kcmp: %w", h.FD, h.PID, errno)
	}
	return differ == 0, nil
}
