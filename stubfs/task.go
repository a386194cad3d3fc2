package stubfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
)

// fate is what is known of the thread that waits for a request.
type fate int

const (
	lives  fate = iota
	dying       // it has been killed, or exits, and can't go on until answered
	kernel      // it is the kernel's own
)

// fateOf asks /proc about a thread. It can't be mistaken for another that got
// the same number: the one that waits can't end before it is answered.
func fateOf(tid int) fate {
	if tid <= 0 {
		return lives // not visible from here: doc.go
	}
	dir := "/proc/" + strconv.Itoa(tid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return unreadable(err)
	}
	switch flags := statFlags(stat); {
	case flags&flagKthread != 0:
		return kernel
	case flags&flagExiting != 0:
		return dying
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return unreadable(err)
	}
	if killPending(status) {
		return dying
	}
	return lives
}

// unreadable is the fate of a thread whose /proc files can't be read: gone,
// unless it is /proc that is missing.
func unreadable(err error) fate {
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat("/proc/self/stat"); err == nil {
			return dying
		}
	}
	return lives
}

// include/linux/sched.h
const (
	flagExiting = 0x00000004 // PF_EXITING
	flagKthread = 0x00200000 // PF_KTHREAD
)

// statFlags finds the ninth field of /proc/PID/stat, the task's PF_ flags, or
// 0. The second field, the name, may hold anything, but is the last with a
// parenthesis.
func statFlags(stat []byte) uint64 {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const flags = 9 - 3 // the first field behind the name is the third
	if len(fields) <= flags {
		return 0
	}
	n, err := strconv.ParseUint(string(fields[flags]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// killPending says whether SIGKILL waits for the thread, by its
// /proc/PID/status. Any signal that ends a process, and exit_group or execve
// by another of its threads, puts SIGKILL into each thread's own set
// (kernel/signal.c complete_signal, zap_other_threads).
func killPending(status []byte) bool {
	const sigkill = 1 << (9 - 1)
	for _, key := range []string{"SigPnd", "ShdPnd"} {
		n, err := strconv.ParseUint(statusField(status, key), 16, 64)
		if err == nil && n&sigkill != 0 {
			return true
		}
	}
	return false
}

// statusField returns a value of /proc/PID/status, or nothing.
func statusField(status []byte, key string) string {
	for line := range bytes.Lines(status) {
		k, v, ok := bytes.Cut(line, []byte(":"))
		if ok && string(k) == key {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}
