// Command spfs-swap: see "spfs-swap help".
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/internal/exit"
)

// commands holds one entry per command, each defined in the file of its name.
var commands = []*cli.Command{
	listCommand,
	planCommand,
	runCommand,
	recoverCommand,
}

func main() {
	app := &cli.App{
		Name:           "spfs-swap",
		Usage:          "give live processes the files of one mount in place of another's",
		Description:    description,
		Commands:       commands,
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {}, // statuses are exit's
		OnUsageError:   usageError,
		Action:         noCommand,
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := app.RunContext(ctx, os.Args)
	stop()
	os.Exit(exit.Report(os.Stderr, app.Name, err))
}

func usageError(_ *cli.Context, err error, _ bool) error { return exit.Usage("%v", err) }

// noCommand is run for a command that there is not, and for none.
func noCommand(c *cli.Context) error {
	if c.NArg() > 0 {
		return exit.Usage("no command %q: see spfs-swap help", c.Args().First())
	}
	return cli.ShowAppHelp(c)
}

const description = `Processes have files open on a FUSE mount (--from) that is to go: because its
daemon died or hangs, because it is replaced, or because it only stood in until
the real one came up. spfs-swap gives them the same files of another mount
(--to) instead: the same descriptor numbers, offsets and flags, the same
addresses of mappings, the same working directories. They notice nothing.

   spfs-swap list /mnt/data                          who uses it, and how
   spfs-swap plan --from /mnt/data --to /mnt/new     what would be done, and what is in the way
   spfs-swap run  --from /mnt/data --to /mnt/new     do it
   spfs-swap recover                                 finish for a run that was killed

list and plan change nothing and stop nobody. list never waits for the mount,
whatever state it is in. The files under --to must be the same as those under
--from: same names, types and sizes.

All commands need root. Exit status: 0 done; 1 failed, and nothing changed;
2 wrong usage; 3 refused before anything was stopped: what is in the way is
printed, with what to do about it.`
