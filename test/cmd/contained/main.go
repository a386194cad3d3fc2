// Command contained runs a command inside the fence of the end-to-end tests,
// and fails if it left a process, a mount, a socket, a cgroup or a file:
//
//	contained COMMAND [ARGUMENT…]
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"spfs/test/rig"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: contained COMMAND [ARGUMENT…]")
		os.Exit(2)
	}
	os.Exit(rig.Contain(run))
}

func run() int {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exited *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exited) && exited.ExitCode() > 0:
		return exited.ExitCode()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
