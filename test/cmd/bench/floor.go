package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"spfs/internal/ptrace"
	"spfs/test/rig"
)

// floorArgument is the first of the program that measures the floor: it must be
// none of the clients' parents, which are told of their stops, too.
const floorArgument = "-floor"

// floor is how long it takes to stop the tasks of these processes and let them go
// again, and nothing else: less than that no swap can take.
func floor(t rig.T, pids []int) time.Duration {
	args := []string{floorArgument}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	said := rig.RunCmd(t, exec.Command("/proc/self/exe", args...)).OK(t).Stdout
	took, err := time.ParseDuration(strings.TrimSpace(said))
	if err != nil {
		t.Fatalf("the floor: %v", err)
	}
	return took
}

// measureFloor is the program. It prints what it measured, and returns its exit
// status.
func measureFloor(args []string) int {
	took, err := stopAndGo(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(took)
	return 0
}

func stopAndGo(args []string) (time.Duration, error) {
	tracers := make([]*ptrace.Tracer, runtime.GOMAXPROCS(0))
	for i := range tracers {
		tracers[i] = ptrace.New()
		defer tracers[i].Close()
	}
	shares := make([][]int, len(tracers))
	for i, arg := range args {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return 0, err
		}
		shares[i%len(shares)] = append(shares[i%len(shares)], pid)
	}
	began := time.Now()
	var g errgroup.Group
	for i, t := range tracers {
		if len(shares[i]) > 0 {
			g.Go(func() error {
				return t.Do(func() error {
					all, err := t.SeizeAll(context.Background(), shares[i])
					for _, p := range all {
						err = errors.Join(err, p.Release())
					}
					return err
				})
			})
		}
	}
	err := g.Wait()
	return time.Since(began), err
}
