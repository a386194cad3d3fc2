package main

import (
	"github.com/urfave/cli/v2"

	"spfs/internal/control"
	"spfs/internal/daemon"
	"spfs/internal/exit"
)

var modeCommand = &cli.Command{
	Name:  "mode",
	Usage: "make a mount a stub, or a proxy of a directory",
	UsageText: `spfs mode [--timeout TIME] MOUNTPOINT stub
spfs mode [--timeout TIME] MOUNTPOINT proxy --dir DIR`,
	Description: `stub: returns when every request that ran is answered and the kernel has
dropped what it had cached; whoever touches the mount then waits.

proxy: lets the requests that wait run on DIR, in order, and forwards what
follows. Files that are open are opened again by name; one that is missing in
DIR, or of another type there, gives ESTALE to those who use it.

If it fails, the mount is as it was.`,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "dir", Usage: "the directory `DIR` to be a proxy of"},
		&cli.DurationFlag{Name: "timeout", Usage: "give up after `TIME`, as 10s, if a request does not finish", DefaultText: "wait"},
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() != 2 {
			return exit.Usage("mode: MOUNTPOINT and stub or proxy are needed, got %d arguments", c.NArg())
		}
		path, mode, dir := c.Args().Get(0), c.Args().Get(1), c.String("dir")
		switch {
		case mode != control.ModeStub && mode != control.ModeProxy:
			return exit.Usage("mode: it is stub or proxy, not %q", mode)
		case mode == control.ModeProxy && dir == "":
			return exit.Usage("mode: proxy needs --dir")
		case mode == control.ModeStub && dir != "":
			return exit.Usage("mode: stub takes no --dir")
		}
		return daemon.SetMode(c.Context, path, dir, c.Duration("timeout"))
	},
}
