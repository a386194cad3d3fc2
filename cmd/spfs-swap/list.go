package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"spfs/internal/exit"
	"spfs/internal/privilege"
	"spfs/swap"
)

var listCommand = &cli.Command{
	Name:      "list",
	Usage:     "say who uses a FUSE mount, and how",
	ArgsUsage: "MOUNTPOINT",
	Description: `Prints every process of the machine, in whatever mount namespace, that holds
something of the file system mounted at MOUNTPOINT: descriptors (fd), mappings,
working and root directories; and what of it spfs-swap could not replace.

It never asks the file system anything, and so never waits for it: the daemon
may be dead, stopped or silent. A process that can't be looked at is said to be
so after less than half a second.`,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print an object: device, servers, mounts, processes, obstacles"},
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() != 1 {
			return exit.Usage("list: want one MOUNTPOINT, got %d arguments", c.NArg())
		}
		if err := privilege.NeedRoot(); err != nil {
			return err
		}
		at, err := swap.NewEndpoint(c.Args().First())
		if err != nil {
			return err
		}
		if !at.Mount.FUSE() {
			return fmt.Errorf("%s: it is %s, not FUSE", at.Path, at.Mount.FSType)
		}
		usage, err := swap.Find(c.Context, at.Mount.Dev, swap.Scope{})
		if err != nil {
			return err
		}
		defer usage.Close()
		return printReport(usage.Report(), c.Bool("json"))
	},
}

// printReport prints r to standard output.
func printReport(r *swap.Report, asJSON bool) error {
	if !asJSON {
		return r.WriteTable(os.Stdout)
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}
