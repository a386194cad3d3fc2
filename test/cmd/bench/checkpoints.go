package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// checkpoints measures dump and restore of a pod with its own bindfs by spfs, and
// of the same pod on a plain directory by plain CRIU, for some numbers of open
// files; and prints what of the difference each file costs.
//
// Either pod has three processes: the first, a client that has the files open
// and wakes a few hundred times a second, and a daemon: bindfs, or in its place a
// process that sleeps. They go through checkpoints in turns, and while one does
// the other is stopped, so that neither is measured with more to do beside it
// on the machine than the other. Times are those of the command from its start to
// its end.
func checkpoints(t rig.T) {
	const rounds = 7
	files := []int{10, 200, 1000}

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "checkpoint, ms\tfiles\tdirectory, CRIU\tbindfs in the tree, spfs\tmore\tfor each further file\t")
	var first [2]time.Duration
	for _, n := range files {
		o := rig.CounterOptions{FDs: n, Quiet: true, Pace: 2 * time.Millisecond, AllPace: true}
		plain := rig.StartPod(t, rig.PodDirectory(t), o)
		served := rig.StartPod(t, rig.PodBindfs(t, "bindfs"), o)
		var took [2][2][]time.Duration // dump or restore; plain or served
		for range rounds {
			for i, p := range []*rig.Pod{plain, served} {
				other := plain
				if i == 0 {
					other = served
				}
				signalPod(t, other, unix.SIGSTOP)
				dumped, restored := checkpoint(t, p, i == 1)
				signalPod(t, other, unix.SIGCONT)
				took[0][i] = append(took[0][i], dumped)
				took[1][i] = append(took[1][i], restored)
			}
		}
		for i, what := range []string{"dump", "restore"} {
			a, b := median(took[i][0]), median(took[i][1])
			each := "\t"
			if n == files[0] {
				first[i] = b - a
			} else {
				each = fmt.Sprintf("%.4f\t", millis(b-a-first[i])/float64(n-files[0]))
			}
			fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t%.1f\t%s\n", what, n, millis(a), millis(b), millis(b-a), each)
		}
		for _, p := range []*rig.Pod{plain, served} {
			p.Counter.Check()
			p.Kill()
		}
	}
	w.Flush()
}

// signalPod sends a signal to all processes of a pod.
func signalPod(t rig.T, p *rig.Pod, signal unix.Signal) {
	for _, pid := range rig.Tree(p.PID) {
		if err := unix.Kill(pid, signal); err != nil {
			t.Fatalf("signal %d to process %d of pod %s: %v", signal, pid, p.Kind.Name, err)
		}
	}
}

// checkpoint takes a pod through one, and returns how long its two halves took.
func checkpoint(t rig.T, p *rig.Pod, spfs bool) (dumped, restored time.Duration) {
	b := rig.Build(t)
	images := rig.Mkdir(t, p.Root+".images")
	defer os.RemoveAll(images)
	dump := exec.Command(b.CRIU, "dump", "--tree", fmt.Sprint(p.PID), "--images-dir", images, "-v4", "--log-file", "dump.log")
	restore := exec.Command(b.CRIU, "restore", "--images-dir", images, "--root", p.Root, "--restore-detached", "-v4", "--log-file", "restore.log")
	if spfs {
		dump = exec.Command(b.SPFS, "dump", "--tree", fmt.Sprint(p.PID), "--images-dir", images, "--criu", b.CRIU)
		restore = exec.Command(b.SPFS, "restore", "--images-dir", images, "--detach", "--criu", b.CRIU, "--", "--root", p.Root)
	}
	dumped = rig.RunCmd(t, dump).OK(t).Took
	restored = rig.RunCmd(t, restore).OK(t).Took
	p.Restored()
	p.Counter.CountsOn(10)
	return dumped, restored
}

func median[T cmp.Ordered](d []T) T {
	slices.Sort(d)
	return d[len(d)/2]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
