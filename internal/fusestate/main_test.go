package fusestate

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// Who the test binary is, when it runs itself.
const (
	role        = "SPFS_TEST_ROLE"
	inNamespace = "tests"
	asClient    = "client"
)

// TestMain runs the tests in a mount namespace of their own, where a mount
// that a failed test leaves behind dies with them.
func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(runAgain())
	case asClient:
		os.Exit(beClient(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func runAgain() int {
	runtime.LockOSThread() // Pdeathsig is the thread's
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), role+"="+inNamespace)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, // and makes it private
		Pdeathsig:    syscall.SIGKILL,
	}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "running the tests in a mount namespace of their own:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// client is a process that uses the files of a server.
type client struct {
	pid int
	told
}

// told is what a client says of itself.
type told struct {
	FDs       []int    // in the order of what it was to open
	Addresses []uint64 // of what it was to map
	last      []func() // what it does when it has told
}

// startClient starts a process that does what it is told, and returns when it
// has done it. It ends with the test.
func startClient(t *testing.T, todo ...string) *client {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", todo...)
	cmd.Env = append(os.Environ(), role+"="+asClient, "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("starting a client:", err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	c := &client{pid: cmd.Process.Pid}
	if err := json.NewDecoder(stdout).Decode(&c.told); err != nil {
		t.Fatalf("the client, told to %q: %v", todo, err)
	}
	return c
}
