package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"spfs/internal/exit"
	"spfs/internal/privilege"
	"spfs/swap"
)

var planCommand = &cli.Command{
	Name:      "plan",
	UsageText: "spfs-swap plan --from MOUNTPOINT --to MOUNTPOINT [--pid N|--tree N|--cgroup PATH] [--ask-old|--abort] [--accept-loss] [--json]",
	Usage:     "say what a swap would do, and what is in the way",
	Description: `Opens everything that a swap would need, and prints per process what it holds,
what would be done, and what is in the way (!) with what to do about it. It
stops nobody and changes nothing.

The daemon of --from is not asked anything, for it may not answer. If it does,
say --ask-old: it is then asked about files of which the kernel remembers
something else than --to shows, and for the positions of directories that are
being read; both are in the way otherwise. If no process serves --from any
more, what processes have written to it and the daemon never got is in the way,
unless --accept-loss gives it up. Exit status 3 if something is in
the way.`,
	Flags: slices.Concat(planFlags, []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print an object, as list does, with from, to, and an action for each hold"},
	}),
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		plan, err := newPlan(c)
		if err != nil {
			return err
		}
		defer plan.Close()
		if err := printReport(plan.Report(), c.Bool("json")); err != nil {
			return err
		}
		return plan.Err()
	},
}

// planFlags are the flags of every command that makes a plan.
var planFlags = []cli.Flag{
	&cli.StringFlag{Name: "from", Usage: "the `MOUNTPOINT` of the FUSE mount that is to go"},
	&cli.StringFlag{Name: "to", Usage: "the `MOUNTPOINT` of the mount that is to stand there"},
	&cli.IntSliceFlag{Name: "pid", Usage: "only the process `N` (may be repeated)"},
	&cli.IntSliceFlag{Name: "tree", Usage: "only the process `N` and its descendants (may be repeated)"},
	&cli.StringSliceFlag{Name: "cgroup", Usage: "only processes in the cgroup `PATH` and below (may be repeated)"},
	&cli.BoolFlag{Name: "ask-old", Usage: "the daemon of --from answers: it may be asked"},
	&cli.BoolFlag{Name: "abort", Usage: "the daemon of --from hangs, or may: end its requests, and don't ask it anything"},
	&cli.BoolFlag{Name: "accept-loss", Usage: "if the daemon of --from is dead or hangs, let go what only it could tell"},
}

// newPlan makes the plan that planFlags describe.
func newPlan(c *cli.Context) (*swap.Plan, error) {
	if c.NArg() > 0 {
		return nil, exit.Usage("%s: unexpected argument %q", c.Command.Name, c.Args().First())
	}
	for _, name := range []string{"from", "to"} {
		if c.String(name) == "" {
			return nil, exit.Usage("%s: --%s is missing", c.Command.Name, name)
		}
	}
	scope := swap.Scope{PIDs: c.IntSlice("pid"), Trees: c.IntSlice("tree"), Cgroups: c.StringSlice("cgroup")}
	for _, pid := range append(append([]int(nil), scope.PIDs...), scope.Trees...) {
		if pid <= 0 {
			return nil, exit.Usage("%s: %d is no process id", c.Command.Name, pid)
		}
	}
	if c.IsSet("pid") && (c.IsSet("tree") || c.IsSet("cgroup")) || c.IsSet("tree") && c.IsSet("cgroup") {
		return nil, exit.Usage("%s: --pid, --tree and --cgroup exclude each other", c.Command.Name)
	}
	if err := privilege.NeedRoot(); err != nil {
		return nil, err
	}
	var ends [2]swap.Endpoint
	for i, name := range []string{"from", "to"} {
		at, err := swap.NewEndpoint(c.String(name))
		if err != nil {
			return nil, fmt.Errorf("--%s %w", name, err)
		}
		ends[i] = at
	}
	var options []swap.Option
	if c.Bool("ask-old") {
		options = append(options, swap.AskOld())
	}
	if c.Bool("abort") {
		if c.Bool("ask-old") {
			return nil, exit.Usage("%s: --ask-old and --abort exclude each other", c.Command.Name)
		}
		if !scope.Everyone() {
			return nil, exit.Usage("%s: --abort ends the mount for everybody: --pid, --tree and --cgroup can't be said with it", c.Command.Name)
		}
		options = append(options, swap.Abort())
	}
	if c.Bool("accept-loss") {
		options = append(options, swap.AcceptLoss())
	}
	return swap.NewPlan(c.Context, ends[0], ends[1], scope, options...)
}
