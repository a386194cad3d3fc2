package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/exit"
)

// inNamespace marks the process that runs the tests.
const inNamespace = "SPFS_TEST_IN_NAMESPACE"

// sockets is where the daemons have their control sockets.
const sockets = "/run/spfs"

// TestMain runs the tests in a mount namespace of their own, with a directory
// of control sockets of their own. Started again by [Start], this program is a
// daemon.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(inNamespace) == "":
		os.Exit(runAgain())
	case len(os.Args) > 1 && asDaemon[os.Args[1]] != nil:
		os.Exit(exit.Status(asDaemon[os.Args[1]](os.Args[2:])))
	}
	if err := unix.Mount("spfs-test", sockets, "tmpfs", 0, "mode=0700"); err != nil {
		fmt.Fprintln(os.Stderr, "mount a tmpfs on", sockets, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// asDaemon holds what a process that Start made does, by its first argument.
var asDaemon = map[string]func(args []string) error{
	// serve MOUNTPOINT DIR
	"serve": func(args []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		return RunReporting(ctx, Options{Mountpoint: args[0], Dir: args[1]})
	},
	"misuse": func([]string) error {
		err := exit.Usage("no such word")
		report(err)
		return err
	},
	"refuse": func([]string) error {
		err := exit.Refuse(errors.New("it is taken"))
		report(err)
		return err
	},
	"die": func([]string) error { os.Exit(7); return nil },
}

func runAgain() int {
	runtime.LockOSThread() // Pdeathsig is the thread's
	if err := os.MkdirAll(sockets, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
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
