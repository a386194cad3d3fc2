package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"spfs/test/rig"
)

// rounds is how often each swap is measured.
const rounds = 7

// times are what one swap took.
type times struct {
	stopped, total time.Duration // as spfs-swap says
	pause          time.Duration // the longest that a client saw
	command        time.Duration // from start to end of the command
}

func swaps(t rig.T) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "processes × fds\tstopped\tclient's pause\ttotal\tcommand\t(median of %d; stopped at most)\t\n", rounds)
	for _, c := range []struct{ processes, fds int }{{1, 10}, {1, 1000}, {10, 10}, {100, 10}} {
		all := swapped(t, c.processes, c.fds)
		median := func(of func(times) time.Duration) time.Duration {
			var ds []time.Duration
			for _, x := range all {
				ds = append(ds, of(x))
			}
			slices.Sort(ds)
			return ds[len(ds)/2]
		}
		worst := slices.MaxFunc(all, func(a, b times) int { return int(a.stopped - b.stopped) }).stopped
		fmt.Fprintf(w, "%d × %d\t%s\t%s\t%s\t%s\t%s\t\n", c.processes, c.fds,
			ms(median(func(x times) time.Duration { return x.stopped })),
			ms(median(func(x times) time.Duration { return x.pause })),
			ms(median(func(x times) time.Duration { return x.total })),
			ms(median(func(x times) time.Duration { return x.command })), ms(worst))
	}
	w.Flush()
	fmt.Println()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

// swapped swaps a client of so many processes, each with so many descriptors,
// back and forth between two bindfs mounts. The first process counts without a
// pause and so sees the whole stop; the others, were they to do the same, would
// measure the scheduler.
func swapped(t rig.T, processes, fds int) (all []times) {
	_, at := rig.Served(t, "a", "b")
	c := rig.StartCounter(t, at[0], rig.CounterOptions{
		FDs: fds, Children: processes - 1, Pace: 10 * time.Millisecond, Quiet: true,
	})
	for i := range rounds {
		c.ForgetPauses()
		var r struct {
			Processes int   `json:"processes"`
			FDs       int   `json:"fds"`
			StoppedUS int64 `json:"stopped_us"`
			TotalUS   int64 `json:"total_us"`
		}
		res := rig.Run(t, rig.Build(t).Swap, "run", "--json", "--from", at[i%2], "--to", at[1-i%2], "--tree", fmt.Sprint(c.PID)).OK(t)
		res.JSON(t, &r)
		if r.Processes != processes || r.FDs != processes*fds {
			t.Fatalf("%d processes and %d descriptors were swapped, want %d and %d", r.Processes, r.FDs, processes, processes*fds)
		}
		c.CountsOn(1)
		all = append(all, times{
			time.Duration(r.StoppedUS) * time.Microsecond, time.Duration(r.TotalUS) * time.Microsecond,
			c.Workers[0].Pause(), res.Took,
		})
	}
	c.Check()
	rig.Kill(t, rig.Tree(c.PID)...)
	return all
}
