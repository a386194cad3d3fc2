package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// Stopped and put back, over and over, a tree with its own daemon goes on as if
// nobody had been there, and nothing is left in it.
func TestStoppedAndPutBack(t *testing.T) {
	for _, k := range pods(t) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			daemon := p.Daemon()
			before := descriptorsOf(t, daemon)
			out := stopper(t, p, 20, time.Minute)
			p.Counter.CountsOn(100)
			if after := descriptorsOf(t, daemon); !slices.Equal(before, after) {
				t.Errorf("the daemon's /dev/fuse were %v, and are %v", before, after)
			}
			t.Logf("%slongest pause %v", out, p.Counter.Pause())
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// stopper stops a pod and puts it back.
func stopper(t *testing.T, p *rig.Pod, rounds int, timeout time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, rig.Build(t).Stopper, fmt.Sprint(p.PID), fmt.Sprint(rounds), timeout.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, p.Log())
	}
	return string(out)
}

// descriptorsOf lists the kinds of /dev/fuse that a process has: what fdinfo
// says of them, each once. With clone_fd, threads and theirs come and go.
func descriptorsOf(t *testing.T, pid int) (kinds []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && filepath.Base(link) == "fuse" {
			info, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
			if errors.Is(err, fs.ErrNotExist) {
				continue // closed meanwhile
			}
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, string(info))
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// Several daemons in one tree: one is a client of another, one is not used.
func TestStoppedInTheRightOrder(t *testing.T) {
	k := rig.PodBindfs(t, "chain")
	k.Command = strings.Fields("at=/mid /bin/bindfs -f /data /mid -- at=/other /bin/bindfs -f /data /other -- at=/mnt /bin/bindfs -f /mid /mnt")
	k.Prepare = func(t rig.T, root string) {
		rig.Mkdir(t, root, "mid")
		rig.Mkdir(t, root, "other")
	}
	p := rig.StartPod(t, k, podClient)
	p.Counter.ForgetPauses()
	out := stopper(t, p, 5, time.Minute)
	if n := strings.Count(out, "3 connections"); n != 5 {
		t.Errorf("of 5 rounds, %d had 3 connections:\n%s", n, out)
	}
	p.Counter.CountsOn(30)
	p.Counter.Check()
	p.Counter.End(p.Data)
}

// Where BPF can't be used, the handles are asked for.
func TestStoppedWithoutBPF(t *testing.T) {
	t.Setenv("SPFS_TEST_NO_BPF", "1")
	p := rig.StartPod(t, rig.PodWriteback(t, "writeback"), podClient)
	stopper(t, p, 5, time.Minute)
	p.Counter.CountsOn(30)
	p.Counter.Check()
	p.Counter.End(p.Data)
}

// A request that is not answered keeps the tree from being stopped: the error
// says whose it is and who owes the answer, and all go on.
func TestAnUnansweredRequestIsNamed(t *testing.T) {
	p := rig.StartPod(t, rig.PodBindfs(t, "bindfs"), podClient)
	daemon := p.Daemon()
	if err := unix.Kill(daemon, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	last := p.Counter.Count()
	rig.Await(t, time.Minute, func() bool { // until all of its workers wait
		time.Sleep(50 * time.Millisecond)
		was := last
		last = p.Counter.Count()
		return was == last
	}, "the counter stands still")
	out, err := exec.Command(rig.Build(t).Stopper, fmt.Sprint(p.PID), "1", "2s").CombinedOutput()
	if err == nil {
		t.Errorf("it was stopped: %s", out)
	}
	for _, want := range []string{"counter", fmt.Sprintf("process %d (bindfs)", daemon), "left to answer", "of connection"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if err := unix.Kill(daemon, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.Counter.CountsOn(30)
	stopper(t, p, 1, time.Minute)
	p.Counter.CountsOn(30)
	p.Counter.Check()
	p.Counter.End(p.Data)
}

// Killed at any moment, whoever stops a tree leaves one that runs on: the
// keeper puts it back, and who has started a keeper if that is killed.
func TestKilledWhileStopping(t *testing.T) {
	for _, who := range []string{"stopper", "keeper"} {
		t.Run(who, func(t *testing.T) {
			p := rig.StartPod(t, rig.PodBindfs(t, "bindfs", "--multithreaded"), podClient)
			daemon := p.Daemon()
			before := descriptorsOf(t, daemon)
			for round := range 6 {
				cmd := exec.Command(rig.Build(t).Stopper, fmt.Sprint(p.PID), "1000", "1m")
				said := new(strings.Builder)
				cmd.Stderr = said
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// It begins to be fast with its second round.
				if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
					t.Fatalf("%v: %s", err, said)
				}
				time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
				keepers := rig.Tree(cmd.Process.Pid)[1:]
				kill := keepers
				if who == "stopper" {
					kill = []int{cmd.Process.Pid}
				}
				for _, pid := range kill {
					unix.Kill(pid, unix.SIGKILL)
				}
				if who == "keeper" && len(kill) > 0 {
					if _, err := io.ReadAll(out); err != nil {
						t.Fatal(err)
					}
				} else {
					unix.Kill(cmd.Process.Pid, unix.SIGKILL)
				}
				cmd.Wait()
				for _, pid := range keepers {
					rig.Await(t, 20*time.Second, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }, "the keeper does not end")
				}
				p.Counter.CountsOn(3)
				if after := descriptorsOf(t, daemon); !slices.Equal(before, after) {
					t.Fatalf("round %d: the daemon's /dev/fuse were %v, and are %v\n%s", round, before, after, said)
				}
				for _, pid := range rig.Tree(p.PID) {
					if cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || strings.Contains(string(cgroup), "spfs-dump") {
						t.Fatalf("round %d: process %d is left in %s (%v)\n%s", round, pid, cgroup, err, said)
					}
				}
			}
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}
