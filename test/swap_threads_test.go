package test

import (
	"bufio"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"spfs/test/rig"
)

// A process of a thousand threads, that compute, sleep, read the mount and wait in
// the kernel, goes on with each of them as it was.
func TestSwapOfAThousandThreads(t *testing.T) {
	t.Parallel()
	const threads = 1000
	m := bindfsTwice(t)
	m.put(t, "f", strings.Repeat("0123456789abcdef", 4))
	cmd := exec.Command(rig.Build(t).Threads, m.old+"/f", itoa(threads))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	answers := bufio.NewReader(out)
	says := func(want string) {
		t.Helper()
		if got, err := answers.ReadString('\n'); err != nil || got != want+"\n" {
			t.Fatalf("it says %q, %v, want %q", got, err, want)
		}
	}
	goesOn := func() {
		t.Helper()
		fmt.Fprintln(in)
		says("went on")
	}
	goesOn()
	for range 3 {
		var r swapReport
		m.swapWith(t, "--timeout", "2m").OK(t).JSON(t, &r)
		if r.Processes != 1 || r.Threads != threads+1 || r.FDs != 1 {
			t.Errorf("reported %d processes, %d threads, %d descriptors, want 1, %d, 1", r.Processes, r.Threads, r.FDs, threads+1)
		}
		goesOn()
		m.restart(t)
	}
	in.Close()
	says("whole")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
