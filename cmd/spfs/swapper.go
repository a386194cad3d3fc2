package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// swapper moves everybody from the stub at from onto what is mounted at to. It
// is spfs-swap that does it, as a process of its own: it traces others, and
// must be free to end.
func swapper(ctx context.Context, from, to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program := filepath.Join(filepath.Dir(self), "spfs-swap")
	out, err := exec.CommandContext(ctx, program, "run", "--move", "--from", from, "--to", to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s run: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
