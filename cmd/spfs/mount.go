package main

import (
	"context"
	"errors"
	"os/signal"
	"strconv"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/criuhook"
	"spfs/internal/control"
	"spfs/internal/daemon"
	"spfs/internal/exit"
)

var mountCommand = &cli.Command{
	Name:      "mount",
	Usage:     "mount a stub, or a proxy of a directory",
	UsageText: "spfs mount [--mode stub|proxy] [--dir DIR] [--foreground] MOUNTPOINT",
	Description: `Mounts SPFS on MOUNTPOINT, an existing directory, and serves it in the
background until it is unmounted, by whoever. When the command returns, the
mount is there.

A stub holds every request until "spfs mode" makes it a proxy: whoever uses
the mount waits, and gets no error. A proxy forwards every request to DIR.

Example:
   spfs mount /mnt/data
   spfs mode /mnt/data proxy --dir /srv/data`,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "mode", Usage: "`MODE` to begin with: stub, or proxy (needs --dir)", DefaultText: "stub, or proxy with --dir"},
		&cli.StringFlag{Name: "dir", Usage: "the directory `DIR` to be a proxy of"},
		&cli.BoolFlag{Name: "foreground", Usage: "serve in this process; log to standard error"},
		&cli.BoolFlag{Name: "report", Hidden: true},      // set by daemon.Start
		&cli.StringFlag{Name: "positions", Hidden: true}, // set by "spfs restore"
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() != 1 {
			return exit.Usage("mount: one MOUNTPOINT is needed, got %d arguments", c.NArg())
		}
		mode, dir := c.String("mode"), c.String("dir")
		switch {
		case mode != "" && mode != control.ModeStub && mode != control.ModeProxy:
			return exit.Usage("mount: --mode is stub or proxy, not %s", strconv.Quote(mode))
		case mode == control.ModeProxy && dir == "":
			return exit.Usage("mount: --mode proxy needs --dir")
		case mode == control.ModeStub && dir != "":
			return exit.Usage("mount: --mode stub takes no --dir")
		}
		o := daemon.Options{Mountpoint: c.Args().First(), Dir: dir}
		if file := c.String("positions"); file != "" {
			var err error
			if o.Positions, err = criuhook.ReadPositions(file); err != nil {
				return err
			}
		}
		if !c.Bool("foreground") && !c.Bool("report") {
			return daemon.Start("mount", "--report", "--mode="+mode, "--dir="+dir, "--positions="+c.String("positions"), "--", o.Mountpoint)
		}
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
		defer stop()
		run := func(ctx context.Context, o daemon.Options) error { return daemon.Run(ctx, o, func() {}) }
		if c.Bool("report") {
			run = daemon.RunReporting
		}
		return errors.Join(run(ctx, o), criuhook.StubEnded(o.Mountpoint))
	},
}
