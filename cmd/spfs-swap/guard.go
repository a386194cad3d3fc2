package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/swap"
)

// guard is a third process of a run, which recovers when both others have been
// killed. Only a process can hold what that takes: a mount that has not been
// attached yet goes with its last descriptor (fs/namespace.c dissolve_on_fput),
// and what was opened through it has no path any more then.
//
// It waits in a shell, for that starts in a tenth of the time that this program
// takes, and every run has one. What the worker would have it hold lies in the
// queue of a socket; it is taken out only if it is needed.
type guard struct {
	cmd    *exec.Cmd
	lives  *os.File // a pipe to it, held by command and worker: their death is its end
	socket *os.File // the worker's end
	over   sync.Once
}

// guardFlag tells a guard the descriptor of its socket.
const guardFlag = "guard"

var hiddenGuardFlag = &cli.IntFlag{Name: guardFlag, Hidden: true}

// A guard's descriptors: the pipe, the socket, and this program.
const (
	guardScript = `read -r end <&3 || exec /proc/self/fd/5 recover --` + guardFlag + `=4`
	guardSocket = 4
)

func newGuard() (*guard, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the socket of the guard: %w", err)
	}
	g := &guard{socket: os.NewFile(uintptr(pair[0]), "the guard")}
	theirs := os.NewFile(uintptr(pair[1]), "worker")
	defer theirs.Close()
	end, lives, err := os.Pipe()
	if err != nil {
		g.socket.Close()
		return nil, fmt.Errorf("making the pipe of the guard: %w", err)
	}
	defer end.Close()
	g.lives = lives
	program, err := os.Open("/proc/self/exe")
	if err == nil {
		defer program.Close()
		g.cmd = exec.Command("/bin/sh", "-c", guardScript)
		g.cmd.Dir = "/" // never a user of the mount
		g.cmd.Stderr = os.Stderr
		g.cmd.ExtraFiles = []*os.File{end, theirs, program}
		g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = g.cmd.Start()
	}
	if err != nil {
		g.socket.Close()
		g.lives.Close()
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	return g, nil
}

// dismiss ends the guard: there is nothing that it would have to do.
func (g *guard) dismiss() {
	g.over.Do(func() {
		g.lives.WriteString("end\n") // if it was killed, there is nobody to read it
		g.lives.Close()
		g.cmd.Wait() // by a signal, or status 0
	})
}

// recoverAsGuard is what a guard does once it is alone.
func recoverAsGuard(c *cli.Context) error {
	fd := c.Int(guardFlag)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); fd != guardSocket || err != nil {
		return exit.Usage("--%s is for spfs-swap itself", guardFlag)
	}
	ctx, cancel := context.WithTimeout(c.Context, recoverTime)
	defer cancel()
	socket := os.NewFile(uintptr(fd), "the worker")
	defer socket.Close()
	kept, err := receiveKept(socket)
	defer func() {
		for _, f := range kept {
			f.Close()
		}
	}()
	all, recovered := swap.Recover(ctx, swap.Recovery{Kept: kept, ShutGate: shutGateOf})
	if err = errors.Join(err, recovered); err == nil && (len(all) == 0 || all[0].From == "") {
		return nil // the worker had put everything in order, and said so
	}
	return sayRecovered("the run was killed", all, err)
}
