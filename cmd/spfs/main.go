// Command spfs: see "spfs help".
package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"spfs/internal/exit"
)

// commands holds one entry per command, each defined in the file of its name.
var commands = []*cli.Command{
	mountCommand,
	modeCommand,
	statusCommand,
	umountCommand,
	dumpCommand,
	restoreCommand,
	hookCommand,
	keepCommand,
}

func main() {
	app := &cli.App{
		Name:           "spfs",
		Usage:          "let processes live through a change of the FUSE mount they use",
		Description:    description,
		Commands:       commands,
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {}, // statuses are exit's
		OnUsageError:   usageError,
		Action:         noCommand,
	}
	os.Exit(exit.Report(os.Stderr, app.Name, app.Run(flagsFirst(commands, asHook(os.Args)))))
}

func usageError(_ *cli.Context, err error, _ bool) error { return exit.Usage("%v", err) }

// noCommand is run for a command that there is not, and for none.
func noCommand(c *cli.Context) error {
	if c.NArg() > 0 {
		return exit.Usage("no command %q: see spfs help", c.Args().First())
	}
	return cli.ShowAppHelp(c)
}

const description = `A process keeps files open on a FUSE mount, and the mount must change beneath
it: because the process is restored by CRIU before the mount's daemon can run,
or because that daemon died, hangs, or is replaced. SPFS stands in for it.

   stub    a mount that holds every request: whoever uses it waits
   proxy   the same mount, forwarding every request to a directory

"spfs mount" makes one, "spfs mode" turns one into the other, "spfs status"
says who waits for what. "spfs-swap" then moves processes from this mount, or
from any other, to the one that is to stay: see "spfs-swap help".

All commands need root; "spfs help COMMAND" explains one. Exit status: 0 done; 1 failed, and nothing changed;
2 wrong usage; 3 refused before anything was stopped.

Example: keep /mnt/data usable while the file system behind it is replaced.
   spfs mount --dir /srv/old /mnt/data
   spfs mode /mnt/data stub                     whoever uses it waits
   spfs mode /mnt/data proxy --dir /srv/new     and goes on, on the new one
   spfs umount /mnt/data`
