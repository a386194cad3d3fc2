package main

import (
	"github.com/urfave/cli/v2"

	"spfs/handover"
	"spfs/internal/exit"
)

// keepCommand is what "spfs dump" starts to hold the tree: see handover.Keep.
var keepCommand = &cli.Command{
	Name:         "keep",
	Hidden:       true,
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() > 0 {
			return exit.Usage("keep takes no arguments")
		}
		shortLived()
		return handover.Keep(c.Context)
	},
}
