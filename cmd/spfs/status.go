package main

import (
	"encoding/json"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"spfs/internal/control"
	"spfs/internal/exit"
	"spfs/internal/privilege"
)

var statusCommand = &cli.Command{
	Name:      "status",
	Usage:     "say what mounts are doing, and who waits for what",
	ArgsUsage: "[MOUNTPOINT]",
	Description: `Prints the mode of MOUNTPOINT, or of every running mount, and each request
that is held: the process that waits, for what, since when. It asks the daemon,
never the mount, and so does not wait itself.`,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print an array with an object for each mount"},
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() > 1 {
			return exit.Usage("status: at most one MOUNTPOINT, got %d arguments", c.NArg())
		}
		if err := privilege.NeedRoot(); err != nil {
			return err
		}
		all, err := control.StatusOf(c.Context, c.Args().First())
		if err != nil {
			return err
		}
		if c.Bool("json") {
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			return e.Encode(all)
		}
		return control.WriteTable(os.Stdout, all, time.Now())
	},
}
