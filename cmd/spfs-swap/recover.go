package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"spfs/internal/exit"
	"spfs/internal/privilege"
	"spfs/swap"
)

var recoverCommand = &cli.Command{
	Name:  "recover",
	Usage: "finish what a run that was killed has begun",
	Description: `A run that is killed leaves every process whole: all of them on the old mount
if it had not committed, all on the new one if it had; and its three processes
recover from each other's death by themselves. recover is for when all of them
were killed. It changes the mount points that are still to be changed, takes away
what was left in processes, and says what it found.

It waits for runs that are under way. Where there is nothing to do it changes
nothing.`,
	Flags: []cli.Flag{
		hiddenGuardFlag,
		&cli.DurationFlag{Name: "timeout", Usage: "give up after `TIME`; what is left is left for the next time", Value: recoverTime},
		&cli.BoolFlag{Name: "json", Usage: "print an array: pid, from, to, swapped, processes, cleaned, mounts, problems of each run"},
	},
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if c.NArg() > 0 {
			return exit.Usage("recover: unexpected argument %q", c.Args().First())
		}
		if err := privilege.NeedRoot(); err != nil {
			return err
		}
		if c.IsSet(guardFlag) {
			return recoverAsGuard(c)
		}
		ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
		defer cancel()
		all, err := swap.Recover(ctx, swap.Recovery{ShutGate: shutGateOf})
		if c.Bool("json") {
			if all == nil {
				all = []swap.Recovered{}
			}
			if failed := json.NewEncoder(os.Stdout).Encode(all); failed != nil {
				return failed
			}
			return err
		}
		if len(all) == 0 && err == nil {
			fmt.Println("nothing to recover")
		}
		for _, r := range all {
			side := "had not committed: all are on the old mount"
			if r.Swapped {
				side = "had committed: all are on the new mount"
			}
			fmt.Printf("a run from %s to %s by process %d %s; %d processes, %d of them cleaned up after; %d mount points changed\n",
				r.From, r.To, r.PID, side, r.Processes, len(r.Cleaned), r.Mounts)
		}
		return err
	},
}
