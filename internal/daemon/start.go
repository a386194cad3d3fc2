package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"spfs/internal/exit"
)

// outcome is what a daemon tells whoever started it, once, on a pipe.
type outcome struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

// maxOutcome bounds what is read of it, in bytes.
const maxOutcome = 64 << 10

// readyFD is the pipe's descriptor in the daemon.
const readyFD = 3

// Start runs this program again with args, in a session of its own with no
// terminal and no output, and returns when it reports: nil if the
// daemon is ready, else its error, with its exit status.
func Start(args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{w} // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	var o outcome
	if err := json.NewDecoder(io.LimitReader(r, maxOutcome)).Decode(&o); err != nil {
		return fmt.Errorf("the daemon ended before it was ready: %w", errors.Join(cmd.Wait()))
	}
	if o.Error != "" || o.Status != exit.Done {
		cmd.Wait() // it has said all
	}
	return o.err()
}

func (o outcome) err() error {
	switch o.Status {
	case exit.Done:
		return nil
	case exit.Misused:
		return exit.Usage("%s", o.Error)
	case exit.Refused:
		return exit.Refuse(errors.New(o.Error))
	}
	return errors.New(o.Error)
}

// report tells whoever called [Start] that this process, the daemon, is ready
// (nil) or why not. It may be called once.
func report(err error) {
	unix.CloseOnExec(readyFD)
	w := os.NewFile(readyFD, "report to the starter")
	defer w.Close()
	o := outcome{Status: exit.Status(err)}
	if err != nil {
		o.Error = err.Error()
	}
	// If nobody reads, nobody waits.
	json.NewEncoder(w).Encode(o)
}

// RunReporting is [Run] in a process that [Start] has made.
func RunReporting(ctx context.Context, o Options) error {
	reported := false
	err := Run(ctx, o, func() {
		reported = true
		report(nil)
	})
	if !reported {
		report(err)
	}
	return err
}
