package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// times are what one swap took.
type times struct {
	stopped, total time.Duration // as spfs-swap says
	pause          time.Duration // the longest that a client saw
	command        time.Duration // from start to end of the command
	floor          time.Duration // see floor
	peak           int64         // bytes of memory of the swapper
}

// swapped is what the swaps of one kind of client took.
type swapped struct {
	name   string
	rounds []times
}

func swaps(t rig.T) {
	var all []swapped
	for _, c := range []struct{ processes, fds, rounds int }{
		{1, 10, 7}, {1, 1000, 7}, {10, 10, 7}, {100, 10, 7}, {1000, 10, 3},
	} {
		all = append(all, swapped{fmt.Sprintf("%d × %d", c.processes, c.fds), swapCounter(t, c.processes, c.fds, c.rounds)})
	}
	all = append(all, swapped{"10 mappings", swapMappings(t, 7)})

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "processes × fds\tstopped\tat most\tfloor\tclient's pause\ttotal\tcommand\tmemory\tmedian of\t")
	for _, s := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d MB\t%d\t\n", s.name,
			ms(median(column(s.rounds, func(x times) time.Duration { return x.stopped }))),
			ms(slices.Max(column(s.rounds, func(x times) time.Duration { return x.stopped }))),
			ms(median(column(s.rounds, func(x times) time.Duration { return x.floor }))),
			ms(median(column(s.rounds, func(x times) time.Duration { return x.pause }))),
			ms(median(column(s.rounds, func(x times) time.Duration { return x.total }))),
			ms(median(column(s.rounds, func(x times) time.Duration { return x.command }))),
			median(column(s.rounds, func(x times) int64 { return x.peak }))>>20, len(s.rounds))
	}
	w.Flush()
	fmt.Println()
}

func column[T any](all []times, of func(times) T) (values []T) {
	for _, x := range all {
		values = append(values, of(x))
	}
	return values
}

func ms(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// swapOnce swaps a client's tree, and says how many processes and descriptors that
// were.
func swapOnce(t rig.T, from, to string, pid int) (x times, processes, fds int) {
	var r struct {
		Processes int   `json:"processes"`
		FDs       int   `json:"fds"`
		StoppedUS int64 `json:"stopped_us"`
		TotalUS   int64 `json:"total_us"`
	}
	x.floor = floor(t, rig.Tree(pid))
	res := rig.Run(t, rig.Build(t).Swap, "run", "--json", "--timeout", "1m", "--from", from, "--to", to, "--tree", fmt.Sprint(pid)).OK(t)
	res.JSON(t, &r)
	x.stopped, x.total = time.Duration(r.StoppedUS)*time.Microsecond, time.Duration(r.TotalUS)*time.Microsecond
	x.command, x.peak = res.Took, res.Peak
	return x, r.Processes, r.FDs
}

// swapCounter swaps a client of so many processes, each with so many descriptors,
// back and forth between two bindfs mounts. The first process counts without a
// pause and so sees the whole stop; the others, were they to do the same, would
// measure the scheduler.
func swapCounter(t rig.T, processes, fds, rounds int) (all []times) {
	_, at := rig.Served(t, "a", "b")
	c := rig.StartCounter(t, at[0], rig.CounterOptions{
		FDs: fds, Children: processes - 1, Quiet: true,
		Pace: max(10*time.Millisecond, time.Duration(processes)*time.Millisecond),
	})
	for i := range rounds {
		c.ForgetPauses()
		x, p, f := swapOnce(t, at[i%2], at[1-i%2], c.PID)
		if p != processes || f != processes*fds {
			t.Fatalf("%d processes and %d descriptors were swapped, want %d and %d", p, f, processes, processes*fds)
		}
		first := c.Workers[0]
		counted := first.Count()
		rig.Await(t, time.Minute, func() bool { return first.Count() > counted }, "the client counts on")
		x.pause = first.Pause()
		all = append(all, x)
	}
	c.Check()
	rig.Kill(t, rig.Tree(c.PID)...)
	return all
}

// swapMappings swaps a process with ten mappings of 64 MB, private and with one of
// a hundred pages written to.
func swapMappings(t rig.T, rounds int) (all []times) {
	const mappings, size, page, every = 10, 64 << 20, 4 << 10, 100
	data, at := rig.Served(t, "a", "b")
	p := rig.StartPuppet(t)
	var starts []uint64
	for i := range mappings {
		name := fmt.Sprintf("/f%d", i)
		rig.Write(t, data+name, "")
		if err := os.Truncate(data+name, size); err != nil {
			t.Fatalf("%v", err)
		}
		fd := p.Open(at[0]+name, unix.O_RDWR)
		start := p.Mmap(fd, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		for at := 0; at < size; at += every * page {
			p.Store(start+uint64(at), []byte("its own"))
		}
		p.Close(fd)
		starts = append(starts, start)
	}
	for i := range rounds {
		x, _, _ := swapOnce(t, at[i%2], at[1-i%2], p.PID)
		all = append(all, x)
		for _, start := range starts {
			if got := string(p.Load(start+every*page, 7)); got != "its own" {
				t.Fatalf("after a swap, a page of the process's own has %q", got)
			}
		}
	}
	rig.Kill(t, p.PID)
	return all
}
