package criuhook

import (
	"context"
	"fmt"
	"strings"
	"time"

	"spfs/internal/exit"
	"spfs/internal/mountcmd"
)

// MountCommand is what the user gave to have a file system of the tree
// mounted again.
type MountCommand struct {
	Point   string // the mount point as the tree sees it
	Command string // for sh -c; %m stands for the directory where it must mount
}

// ParseMountCommand parses MOUNTPOINT=COMMAND.
func ParseMountCommand(s string) (MountCommand, error) {
	point, command, ok := strings.Cut(s, "=")
	switch {
	case !ok || strings.TrimSpace(command) == "":
		return MountCommand{}, exit.Usage("%q is not MOUNTPOINT='COMMAND'", s)
	case checkPath(point) != nil:
		return MountCommand{}, exit.Usage("%q: a mount point as the tree sees it is needed before \"=\", such as /mnt/data", s)
	case !mountcmd.Mounts(command):
		return MountCommand{}, exit.Usage("%q: the command has no %%m, which stands for the directory where it must mount", s)
	}
	return MountCommand{point, command}, nil
}

// run has the file system mounted on dir.
func (m MountCommand) run(ctx context.Context, dir string) error {
	if err := mountcmd.Run(ctx, m.Command, dir); err != nil {
		return fmt.Errorf("--mount %s: %w", m.Point, err)
	}
	return nil
}

// defaultTimeout bounds what a command of --mount, and the swap after it, may
// take.
const defaultTimeout = time.Minute
