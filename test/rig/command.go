package rig

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// patience is how long a command under test may take before it is taken for
// hung. It is far more than any of them needs on a busy machine.
const patience = 20 * time.Second

// Result is what a command said and did.
type Result struct {
	Args           []string
	Status         int // exit status; 128 + the signal, as a shell has it
	Stdout, Stderr string
	Took           time.Duration
	Peak           int64 // the most memory that it or one of its children had, in bytes
}

// Run runs a command to its end. A command that hangs fails t and is killed.
func Run(t T, name string, args ...string) Result {
	t.Helper()
	return RunCmd(t, exec.Command(name, args...))
}

// RunCmd is Run for a command that is made up already, but for its output.
func RunCmd(t T, cmd *exec.Cmd) Result {
	t.Helper()
	return Begin(t, cmd).Wait(t)
}

// Running is a command that has not ended yet.
type Running struct {
	PID      int
	cmd      *exec.Cmd
	out, err bytes.Buffer
	begun    time.Time
	ended    chan struct{}
	took     time.Duration
}

// Begin starts a command. It is killed when t ends.
func Begin(t T, cmd *exec.Cmd) *Running {
	t.Helper()
	r := &Running{cmd: cmd, begun: time.Now(), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &r.out, &r.err
	// What the command leaves running may keep its output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	r.PID = cmd.Process.Pid
	go func() {
		cmd.Wait()
		r.took = time.Since(r.begun)
		close(r.ended)
	}()
	t.Cleanup(func() {
		r.Kill()
		select {
		case <-r.ended:
		case <-time.After(patience):
			t.Errorf("%v can't be killed:%s", cmd.Args, KernelStack(r.PID))
		}
	})
	return r
}

// Ended is closed when the command has ended.
func (r *Running) Ended() <-chan struct{} { return r.ended }

// Kill ends the command with SIGKILL, if it hasn't ended, and waits for it: not
// for ever, since a process that waits in the kernel can't be killed.
func (r *Running) Kill() {
	select {
	case <-r.ended:
		return
	default:
		r.cmd.Process.Kill()
	}
	select {
	case <-r.ended:
	case <-time.After(patience):
	}
}

// Wait waits for the command to end by itself.
func (r *Running) Wait(t T) Result {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		stack := KernelStack(r.PID)
		r.Kill()
		t.Fatalf("%v hung: killed after %v\nstdout: %s\nstderr: %s\nin the kernel: %s",
			r.cmd.Args, patience, r.out.String(), r.err.String(), stack)
	}
	res := Result{Args: r.cmd.Args, Stdout: r.out.String(), Stderr: r.err.String(), Took: r.took}
	res.Peak = r.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if res.Status = ws.ExitStatus(); ws.Signaled() {
		res.Status = 128 + int(ws.Signal())
	}
	return res
}

// OK fails t unless the command succeeded, and returns the result.
func (r Result) OK(t T) Result {
	t.Helper()
	if r.Status != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", r.Line(), r.Status, r.Stdout, r.Stderr)
	}
	return r
}

// Fails fails t unless the command ended with this status, after exactly one
// line on standard error in which every one of words stands.
func (r Result) Fails(t T, status int, words ...string) {
	t.Helper()
	if r.Status != status {
		t.Errorf("%s: exit status %d, want %d\n%s%s", r.Line(), r.Status, status, r.Stdout, r.Stderr)
	}
	if line := strings.TrimSuffix(r.Stderr, "\n"); line == "" || strings.Contains(line, "\n") {
		t.Errorf("%s: standard error is not one line:\n%s", r.Line(), r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%s: standard error does not name %q:\n%s", r.Line(), w, r.Stderr)
		}
	}
}

// Refuses fails t unless the command ended with status 3, and one line of what it
// said has all of words in it.
func (r Result) Refuses(t T, words ...string) {
	t.Helper()
	if r.Status != 3 {
		t.Errorf("%s: exit status %d, want 3\n%s%s", r.Line(), r.Status, r.Stdout, r.Stderr)
	}
	for _, line := range strings.Split(r.Stdout+r.Stderr, "\n") {
		named := 0
		for _, w := range words {
			if strings.Contains(line, w) {
				named++
			}
		}
		if named == len(words) {
			return
		}
	}
	t.Errorf("%s: no line names all of %q:\n%s%s", r.Line(), words, r.Stdout, r.Stderr)
}

// JSON decodes standard output into v.
func (r Result) JSON(t T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Stdout), v); err != nil {
		t.Fatalf("%s: not the JSON that was expected: %v\n%s", r.Line(), err, r.Stdout)
	}
}

// Line is the command as one would type it, without directories.
func (r Result) Line() string {
	words := append([]string(nil), r.Args...)
	words[0] = words[0][strings.LastIndexByte(words[0], '/')+1:]
	return strings.Join(words, " ")
}
