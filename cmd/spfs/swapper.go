package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// swapper moves everybody from the stub at from onto what is mounted at to. It
// is spfs-swap that does it, as a process of its own: it traces others, and
// must be free to end. It is told how long it has and never killed.
func swapper(ctx context.Context, from, to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"run", "--move", "--from", from, "--to", to}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline).Round(time.Millisecond)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		args = append(args, "--timeout", left.String())
	}
	program := filepath.Join(filepath.Dir(self), "spfs-swap")
	cmd := exec.Command(program, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	if exited := (*exec.ExitError)(nil); errors.As(err, &exited) && said.Len() > 0 {
		return errors.New(strings.TrimPrefix(strings.TrimSpace(said.String()), "spfs-swap: "))
	}
	if err != nil {
		return fmt.Errorf("%s run: %w", program, err)
	}
	return nil
}
