package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// hierarchies are all that this machine has.
func hierarchies(t *testing.T) []*Hierarchy {
	t.Helper()
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	var found []*Hierarchy
	for _, kind := range []string{"cgroup2", "cgroup"} {
		var of []*mountinfo.Info
		for _, m := range all {
			if m.FSType == kind {
				of = append(of, m)
			}
		}
		if h, err := choose(of); err == nil {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		t.Fatal(ErrNone)
	}
	return found
}

func TestFrozenDoNotRun(t *testing.T) {
	for _, h := range hierarchies(t) {
		t.Run(fmt.Sprintf("v2=%v", h.V2()), func(t *testing.T) {
			c, err := h.Create(fmt.Sprintf("spfs-test-%d", os.Getpid()))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("cat")
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				c.Thaw()
				cmd.Process.Kill()
				cmd.Wait()
				if err := c.Remove(); err != nil {
					t.Error(err)
				}
			})
			before, err := h.Of(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Add(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if got, err := h.Of(cmd.Process.Pid); err != nil || got.Path() != c.Path() || got.Top() {
				t.Fatalf("it is in %v, not %v (%v)", got, c, err)
			}
			if pids, err := c.Members(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
				t.Fatalf("members %v, %v", pids, err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := errors.Join(c.Freeze(), c.AwaitFrozen(ctx)); err != nil {
				t.Fatal(err)
			}
			if on, err := c.Frozen(); err != nil || !on {
				t.Errorf("frozen: %v, %v", on, err)
			}
			fmt.Fprintln(in, "hello")
			answered := make(chan string, 1)
			go func() {
				b := make([]byte, 16)
				n, _ := out.Read(b)
				answered <- string(b[:n])
			}()
			select {
			case s := <-answered:
				t.Errorf("while frozen it said %q", s)
			case <-time.After(30 * time.Millisecond):
			}
			if err := c.Thaw(); err != nil {
				t.Fatal(err)
			}
			select {
			case s := <-answered:
				if strings.TrimSpace(s) != "hello" {
					t.Errorf("it said %q", s)
				}
			case <-time.After(10 * time.Second):
				t.Error("it does not go on")
			}
			if err := before.Add(cmd.Process.Pid); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParseCgroup(t *testing.T) {
	for _, c := range []struct {
		h    Hierarchy
		text string
		want string // empty: an error
	}{
		{Hierarchy{"/c/unified", "/", true}, "7:freezer:/f\n0::/a/b c\n", "/c/unified/a/b c"},
		{Hierarchy{"/c/freezer", "/", false}, "7:freezer:/f\n0::/a\n", "/c/freezer/f"},
		{Hierarchy{"/c/freezer", "/", false}, "3:cpu,freezer:/\n", "/c/freezer"},
		{Hierarchy{"/c", "/pod", true}, "0::/pod/x\n", "/c/x"},
		{Hierarchy{"/c", "/pod", true}, "0::/podium\n", ""},
		{Hierarchy{"/c", "/pod", true}, "0::/..\n", ""},
		{Hierarchy{"/c", "/", false}, "0::/\n", ""},
		{Hierarchy{"/c", "/", true}, "garbage\n", ""},
	} {
		got, err := c.h.parse(c.text)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%+v, %q: %q, %v", c.h, c.text, got, err)
		}
	}
}
