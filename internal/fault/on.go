//go:build faults

package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	mu      sync.Mutex
	reached = map[string]int{}
	wanted  = os.Getenv("SPFS_FAULT")
	killed  = os.Getenv("SPFS_FAULT_KILL")
	logFile = os.Getenv("SPFS_FAULT_LOG")
)

// Point is a place where a test may kill the program.
func Point(name string) {
	if wanted == "" && logFile == "" {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	reached[name]++
	note(name)
	at, n := wanted, 1
	if before, after, found := strings.Cut(wanted, "#"); found {
		at = before
		n, _ = strconv.Atoi(after) // 0, and so never, if it is no number
	}
	if at != name || reached[name] != n || fired() {
		return
	}
	if killed != "self" {
		unix.Kill(os.Getppid(), unix.SIGKILL)
	}
	if killed != "parent" {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // it comes before anything else is done
	}
}

// fired says whether it has come to a kill before, in whatever process.
func fired() bool {
	if logFile == "" {
		return false
	}
	f, err := os.OpenFile(logFile+".fired", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return true
	}
	f.Close()
	return false
}

// note appends the name to the log.
func note(name string) {
	if logFile == "" {
		return
	}
	f, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid(), name)
		f.Close()
	}
	if err != nil {
		panic(err)
	}
}
