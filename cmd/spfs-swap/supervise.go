package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/swap"
)

// A run is done by a process of its own, the worker, in a session of its own;
// the command that was typed attends to it. Whichever of the two is killed, the
// other one puts things in order: a worker whose command is gone goes back if
// it has not committed yet, and a command whose worker is gone recovers. When
// both are killed, the guard does (guard.go).

// attendedFlag tells a worker the descriptor of its socket to the command; the
// two after it are what it holds of the guard.
const attendedFlag = "attended"

var hiddenAttendedFlag = &cli.IntFlag{Name: attendedFlag, Hidden: true}

// attended makes action the work of a worker.
func attended(action func(*cli.Context, *attendant) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.IsSet(attendedFlag) {
			return work(c, action)
		}
		return attend(c)
	}
}

// attendant is the command, seen from its worker; and the guard.
type attendant struct{ socket, guard *os.File }

// work is the worker.
func work(c *cli.Context, action func(*cli.Context, *attendant) error) error {
	// What is said goes where the command's words go; should nobody read it,
	// that is no reason to stop.
	signal.Ignore(unix.SIGPIPE)
	first := c.Int(attendedFlag)
	for fd := first; fd < first+3; fd++ { // the third, the guard's pipe, is only held
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return exit.Usage("--%s is for spfs-swap itself", attendedFlag)
		}
	}
	a := &attendant{os.NewFile(uintptr(first), "the command"), os.NewFile(uintptr(first+1), "the guard")}
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	go func() {
		// It never says anything: the end of the socket is its death.
		_, err := io.ReadFull(a.socket, make([]byte, 1))
		cancel(fmt.Errorf("the command was killed: %w", err))
	}()
	c.Context = ctx
	err := action(c, a)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = errors.Join(err, cause)
	}
	return err
}

// keep gives the command descriptors, to hold for as long as it lives; and the
// guard, should it still be there: of one that was killed the command need not
// die.
func (a *attendant) keep(files []*os.File) error {
	for part := range slices.Chunk(files, maxRights) {
		fds := make([]int, len(part))
		for i, f := range part {
			fds[i] = int(f.Fd())
		}
		for _, to := range []*os.File{a.guard, a.socket} {
			err := unix.Sendmsg(int(to.Fd()), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if err != nil && !(to == a.guard && errors.Is(err, unix.EPIPE)) {
				return fmt.Errorf("giving the mounts to %s: %w", to.Name(), err)
			}
		}
	}
	return nil
}

// maxRights is how many descriptors one message may carry (SCM_MAX_FD,
// include/net/scm.h).
const maxRights = 253

// attend starts a worker and sees to its end.
func attend(c *cli.Context) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making the socket of the worker: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "command")
	defer ours.Close()
	guard, err := newGuard()
	if err != nil {
		theirs.Close()
		return err
	}
	defer guard.dismiss()
	// The command's name is the first argument: there are no flags before it.
	args := slices.Concat([]string{c.Command.Name, fmt.Sprintf("--%s=3", attendedFlag)}, os.Args[2:])
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, guard.socket, guard.lives}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	guard.socket.Close() // with it, what the worker has sent is the guard's alone
	if err != nil {
		return fmt.Errorf("starting the worker: %w", err)
	}
	// An interruption is for the worker to act upon; this one waits for it.
	stop := context.AfterFunc(c.Context, func() { cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	err = cmd.Wait()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		return fmt.Errorf("waiting for the worker: %w", err)
	}
	state := cmd.ProcessState
	if state.Exited() {
		guard.dismiss()
		os.Exit(state.ExitCode()) // it has said everything
	}
	return recoverWorker(state, ours)
}

// recoverWorker puts in order what a worker that was killed has left.
func recoverWorker(state *os.ProcessState, socket *os.File) error {
	// What is typed now must not leave it half done once more.
	ctx, cancel := context.WithTimeout(context.Background(), recoverTime)
	defer cancel()
	kept, err := receiveKept(socket)
	defer func() {
		for _, f := range kept {
			f.Close()
		}
	}()
	all, recovered := swap.Recover(ctx, swap.Recovery{PID: state.Pid(), Kept: kept, ShutGate: shutGateOf})
	return sayRecovered(fmt.Sprintf("the worker ended by %v", state), all, errors.Join(err, recovered))
}

// sayRecovered tells what became of a run that ended like this.
func sayRecovered(how string, all []swap.Recovered, err error) error {
	if err != nil {
		return fmt.Errorf("%s; recovering from it: %w", how, err)
	}
	for _, r := range all {
		if !r.Swapped {
			continue
		}
		if r.From == "" {
			fmt.Fprintf(os.Stderr, "%s when all had been swapped\n", how)
		} else {
			fmt.Fprintf(os.Stderr, "%s once it had committed: the swap of %s was finished without it\n", how, r.From)
		}
		return nil
	}
	return fmt.Errorf("%s before it had committed: nothing was changed", how)
}

// recoverTime bounds a recovery when nobody says otherwise.
const recoverTime = 10 * time.Second

// receiveKept takes the descriptors that the worker sent before its end.
func receiveKept(socket *os.File) ([]*os.File, error) {
	var kept []*os.File
	oob := make([]byte, unix.CmsgSpace(4*maxRights))
	for {
		n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNRESET) {
			return kept, fmt.Errorf("taking over the worker's mounts: %w", err)
		}
		if err != nil || n == 0 && oobn == 0 {
			return kept, nil
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return kept, fmt.Errorf("taking over the worker's mounts: %w", err)
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return kept, fmt.Errorf("taking over the worker's mounts: %w", err)
			}
			for _, fd := range fds {
				kept = append(kept, os.NewFile(uintptr(fd), "a new mount"))
			}
		}
	}
}
