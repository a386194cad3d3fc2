//go:build faults

package fault

import (
	"fmt"
	"os"
	"path/filepath"
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
	if killed == "stop" {
		unix.Kill(os.Getpid(), unix.SIGSTOP)
		return
	}
	if killed == "all" {
		killSiblings()
	}
	if killed != "self" {
		unix.Kill(os.Getppid(), unix.SIGKILL)
	}
	if killed != "parent" {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // it comes before anything else is done
	}
}

// killSiblings kills the other children of the parent.
func killSiblings() {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getppid())) // one for each thread
	for _, path := range lists {
		list, _ := os.ReadFile(path) // of a thread that has ended meanwhile
		for _, child := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(child); err == nil && pid != os.Getpid() {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
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
