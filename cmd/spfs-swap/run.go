package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"spfs/internal/control"
	"spfs/internal/exit"
	"spfs/internal/fusestate"
	"spfs/internal/mounts"
	"spfs/internal/ptrace"
	"spfs/swap"
)

var runCommand = &cli.Command{
	Name:      "run",
	Usage:     "move everyone who uses one mount to another, while they run",
	UsageText: "spfs-swap run --from MOUNTPOINT --to MOUNTPOINT|--mount 'COMMAND'|--to-fuse PID:FD [--init FLAGS] [--pid N|--tree N|--cgroup PATH] [--move] [--timeout 10s] [--trace FILE] [--json]",
	Description: `Whoever has files open, mapped, or as working or root directory on the FUSE
file system at --from gets the same files of --to in their place, with the same
numbers, offsets, flags, addresses and private pages. All of them are stopped
for that, for milliseconds, and all go on together. In every mount namespace
the mount points of --from then show the new file system; the old one is
detached. --to stays mounted where it is, unless --move takes it away from there.

In place of --to, --mount gives a command for the shell that mounts it where %m
stands. It is run first, and has --timeout to do so; should the swap be refused
or fail, what it has mounted is unmounted again.

--to-fuse names the open /dev/fuse of a daemon that lives, in place of a mount.
What is mounted, or was and is in use still, is mounted once more. A connection
that was never mounted is mounted with --from's options, and its INIT is answered
in the place of the daemon, which has had one long ago: with --init, or so that
any daemon can work with it. --init daemon leaves that to the daemon. Should the
swap then be refused or fail, that mount is left where it is, for the daemon's
connection would end with it; the error says where.

If --from is an spfs stub, its gate is opened onto --to first, so that whoever
waits there gets its answer.

With --pid, --tree or --cgroup only those processes are moved, and the mount
points stay as they are.

What can't be swapped is found before anyone is stopped: nothing is changed
then, and the exit status is 3. See "spfs-swap plan".

If the daemon of --from hangs, is stopped, or may be, say --abort: its connection
is ended for good. Whoever waits in it is stopped first, and makes the call that
it was in again, of --to.

--from's daemon may be dead, too. Nothing is asked of it then. Pages that were
written to a file of it and never sent are lost with it: whoever wrote them is
named, and --accept-loss must be said.`,
	Flags: slices.Concat(planFlags, []cli.Flag{
		mountFlag,
		toFuseFlag,
		initFlag,
		hiddenAttendedFlag,
		&cli.BoolFlag{Name: "move", Usage: "unmount --to from where it is when all is done"},
		&cli.DurationFlag{Name: "timeout", Usage: "give up after `TIME`, and change nothing", Value: swap.DefaultTimeout},
		&cli.StringFlag{Name: "trace", Usage: "write what was done when to `FILE`, for Chrome or Perfetto to show"},
		&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
	}),
	OnUsageError: usageError,
	Action:       attended(runSwap),
}

func runSwap(c *cli.Context, command *attendant) (err error) {
	// A collection during the stop would take a processor away from it. The
	// process ends soon after, and the limit bounds what it may take till then.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	if err := ptrace.Supported(); err != nil {
		return exit.Refuse(err)
	}
	watched, err := newObserver(c.String("trace"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, watched.end()) }()
	if c.IsSet("mount") || c.IsSet("to-fuse") {
		watched.phase("mounting")
	}
	unmount, err := newMount(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	fusestate.Preload() // while the plan is made
	watched.phase("planning")
	plan, err := newPlan(c)
	if err != nil {
		return err
	}
	defer plan.Close()
	for _, l := range plan.Losses {
		watched.say(fmt.Sprintf("spfs-swap: lost: %v", l))
	}
	gate, shut, err := gateOf(plan)
	if err != nil {
		return err
	}
	result, err := plan.Run(c.Context, swap.Options{
		Timeout:  c.Duration("timeout"),
		Move:     c.Bool("move"),
		OpenGate: gate,
		Progress: watched.show,
		Trace:    watched.trace,
		GateShut: shut,
		Keep:     command.keep,
	})
	if err := errors.Join(err, watched.end()); err != nil {
		return err
	}
	if c.Bool("json") {
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	fmt.Printf("swapped %d processes (%d threads): %d descriptors, %d mappings, %d working and %d root directories, %d mount points; stopped for %v, %v in all\n",
		result.Processes, result.Threads, result.FDs, result.Mappings, result.Cwds, result.Roots, result.Mounts,
		time.Duration(result.StoppedUS)*time.Microsecond, time.Duration(result.TotalUS)*time.Microsecond)
	return nil
}

// gateOf returns what makes the old file system answer: for a shut stub the
// opening of its gate onto the new mount; for a proxy or another daemon that
// lives nothing needs to be done. It is nil if there is nobody to answer.
func gateOf(plan *swap.Plan) (open func(context.Context) (func() error, error), shut bool, err error) {
	if plan.Silent() {
		return nil, false, nil
	}
	client, err := control.Dial(plan.From.Mount.Dev)
	if errors.Is(err, control.ErrNotServed) {
		if len(plan.Usage.Servers) == 0 {
			return nil, false, nil
		}
		return answersAlready, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer client.Close()
	status, err := client.Status(context.Background())
	if err != nil {
		return nil, false, err
	}
	if status.Mode != control.ModeStub {
		return answersAlready, false, nil
	}
	return func(ctx context.Context) (func() error, error) { return openGate(ctx, plan) }, true, nil
}

func answersAlready(context.Context) (func() error, error) { return nil, nil }

// openGate opens the gate of a shut stub onto the new mount.
func openGate(ctx context.Context, plan *swap.Plan) (shut func() error, err error) {
	client, err := control.Dial(plan.From.Mount.Dev)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	dir, err := mounts.Open(plan.To.Mount)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := client.Proxy(ctx, dir); err != nil {
		return nil, fmt.Errorf("opening the gate of %s onto %s: %w", plan.From.Path, plan.To.Path, err)
	}
	return func() error { return shutGateOf(plan.From.Mount.Dev) }, nil
}

// shutGateOf makes the stub that serves the device hold requests again. That
// there is none any more is no error.
func shutGateOf(dev uint64) error {
	client, err := control.Dial(dev)
	if errors.Is(err, control.ErrNotServed) {
		return nil
	}
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Stub(context.Background()); err != nil {
		return fmt.Errorf("shutting the gate of the stub again: %w", err)
	}
	return nil
}
