package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"

	"spfs/test/rig"
)

// load is something done over and over, one after the other, each time with the
// next number from 1 on, until stop is called or it fails.
type load struct {
	what  string
	done  atomic.Int64 // how often it was, and was acknowledged
	over  chan struct{}
	stops atomic.Bool
	err   error // read it when over is closed
}

func begin(what string, do func(n int64) error) *load {
	l := &load{what: what, over: make(chan struct{})}
	go func() {
		defer close(l.over)
		for n := int64(1); !l.stops.Load(); n++ {
			if l.err = do(n); l.err != nil {
				return
			}
			l.done.Store(n)
		}
	}()
	return l
}

// acknowledged returns how often all of loads were done; a failed one fails t.
func acknowledged(t rig.T, loads ...*load) (sum int64) {
	t.Helper()
	for _, l := range loads {
		select {
		case <-l.over:
			if l.err != nil {
				t.Fatalf("%s failed after %d times: %v", l.what, l.done.Load(), l.err)
			}
		default:
		}
		sum += l.done.Load()
	}
	return sum
}

// stop ends loads at the end of what they are doing.
func stop(t rig.T, loads ...*load) {
	t.Helper()
	for _, l := range loads {
		l.stops.Store(true)
	}
	for _, l := range loads {
		<-l.over
	}
	acknowledged(t, loads...)
}

// talk is a command that answers each line with one.
type talk struct {
	in  io.WriteCloser
	out *bufio.Reader
	err *os.File
}

// talkTo starts a command to talk with, which is killed when t ends.
func talkTo(t rig.T, cmd *exec.Cmd) *talk {
	t.Helper()
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	said, err3 := os.CreateTemp("", "stderr-")
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatalf("pipes for %v: %v, %v, %v", cmd.Args, err1, err2, err3)
	}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		said.Close()
		os.Remove(said.Name())
	})
	return &talk{in: in, out: bufio.NewReader(out), err: said}
}

// ask says a line and wants that answer.
func (k *talk) ask(line, want string) error {
	_, err := fmt.Fprintln(k.in, line)
	var got string
	if err == nil {
		got, err = k.out.ReadString('\n')
	}
	if err == nil && got == want+"\n" {
		return nil
	}
	said, _ := os.ReadFile(k.err.Name())
	return fmt.Errorf("%s: answered %q, %v, want %q; standard error: %s", line, got, err, want, said)
}

// finished runs a command, and says what it said if it failed or complained.
func finished(cmd *exec.Cmd, complains func(out string) bool) error {
	out, err := cmd.CombinedOutput()
	if err == nil && complains(string(out)) {
		err = fmt.Errorf("it complains")
	}
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
