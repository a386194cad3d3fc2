package main

import (
	"github.com/urfave/cli/v2"

	"spfs/internal/daemon"
	"spfs/internal/exit"
)

var umountCommand = &cli.Command{
	Name:      "umount",
	Usage:     "unmount, and end the daemon",
	ArgsUsage: "MOUNTPOINT",
	Description: `Takes the mount away. A mount in use stays, and the command fails; so does
one with requests held.`,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "force", Usage: "though it is in use: whoever uses it or waits gets an error"},
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() != 1 {
			return exit.Usage("umount: one MOUNTPOINT is needed, got %d arguments", c.NArg())
		}
		return daemon.Umount(c.Context, c.Args().First(), c.Bool("force"))
	},
}
