package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// keeper is the process that holds a tree, as the one sees it that started it.
type keeper struct {
	cmd     *exec.Cmd
	line    *line
	files   *os.File
	journal *journal // what to undo if the keeper dies; nil before and after

	ctx     context.Context // of a stop under way
	release func() bool     // ends its hold on the keeper
}

// errKeeper: the keeper died. What it held was put back.
var errKeeper = errors.New("the process that kept the tree has died")

func startKeeper(program string) (*keeper, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = self
	}
	line, theirLine, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirLine.Close()
	files, theirFiles, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		line.Close()
		return nil, err
	}
	defer theirFiles.Close()
	cmd := exec.Command(program, "keep")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirLine, theirFiles} // keeperLine and keeperFiles
	// Whatever becomes of this process's session and group is not to reach it.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		line.Close()
		files.Close()
		return nil, fmt.Errorf("starting a process to keep the tree: %w", err)
	}
	return &keeper{cmd: cmd, line: newLine(line), files: files}, nil
}

func pair(kind int) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "keeper"), os.NewFile(uintptr(fds[1]), "keeper"), nil
}

// begin has the tree stopped: see next. Until release is called the keeper puts
// everything back when ctx ends.
func (k *keeper) begin(ctx context.Context, o StopOptions) error {
	k.ctx = ctx
	// Told that nobody waits any more, the keeper puts everything back.
	k.release = context.AfterFunc(ctx, func() { k.line.hangUp() })
	if err := k.line.send(order{Stop: &o}); err != nil && !ended(err) {
		return err
	}
	return nil
}

// next returns what the keeper tells next of a tree that is being stopped: what
// is foreseen, then that it is stopped. When it returns an error, the tree runs
// on.
func (k *keeper) next() (report, error) {
	for {
		r, err := k.line.report()
		switch {
		case err != nil:
			return r, errors.Join(k.ctx.Err(), k.died(err))
		case r.Error != nil:
			return r, errors.Join(k.ctx.Err(), r.Error.err())
		case r.Journal != nil:
			if err := k.take(r.Journal); err != nil {
				return r, err
			}
		default:
			return r, nil
		}
	}
}

// take takes a journal, and tells the keeper to go on.
func (k *keeper) take(j *journal) (err error) {
	if k.journal != nil { // of an attempt that was undone
		k.journal.close()
	}
	k.journal = j
	if j.files, err = receiveFiles(k.files, 2*len(j.Devices)); err != nil {
		return errors.Join(err, k.died(err))
	}
	if err := k.line.send(order{Do: toHold}); err != nil && !ended(err) {
		return err
	}
	return nil
}

// ask tells the keeper to do something and returns its answer.
func (k *keeper) ask(what string) (report, error) {
	err := k.line.send(order{Do: what})
	if err != nil && !ended(err) {
		return report{}, err
	}
	r, err := k.line.report()
	if err != nil {
		// Unless the tree is to be put back or gone, it stays as it is: CRIU
		// may be at work on it.
		if what == toCheck {
			return r, fmt.Errorf("%w: %w", errKeeper, err)
		}
		return r, k.died(err)
	}
	if r.Error != nil {
		return r, r.Error.err()
	}
	return r, nil
}

// died puts the tree back in the keeper's place.
func (k *keeper) died(cause error) error {
	// It is dead, and traces nobody, when it has been waited for.
	_ = k.cmd.Wait()
	err := fmt.Errorf("%w: %w", errKeeper, cause)
	if k.journal == nil {
		return err
	}
	j := k.journal
	k.journal = nil
	return errors.Join(err, j.putBack())
}

// dropJournal gives up what would be needed if the keeper died.
func (k *keeper) dropJournal() {
	if k.journal != nil {
		k.journal.close()
		k.journal = nil
	}
}

// close waits for the keeper to end.
func (k *keeper) close() error {
	k.line.close()
	k.files.Close()
	k.dropJournal()
	if k.cmd.ProcessState != nil {
		return nil // it was waited for
	}
	if err := k.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %w", errKeeper, err)
	}
	return nil
}
