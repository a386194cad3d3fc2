package ptrace

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Status is what /proc/PID/status says of a task and [Process] callers need.
type Status struct {
	State        byte // 'R', 'S', 'D', 'T', 't', 'Z', 'X', 'I'
	TGID         int
	TracerPID    int
	KernelThread bool
	Blocked      uint64 // SigBlk: bit n-1 is signal n
	Ignored      uint64 // SigIgn
	Caught       uint64 // SigCgt
	Seccomp      int    // 0 none, 1 strict, 2 filters: they may fail or kill injected calls
}

func readStatus(tid int) (*Status, error) {
	// About 1.5 KiB are in use, but for the list of groups.
	text, err := readRecord(fmt.Sprintf("/proc/%d/status", tid), make([]byte, 2048))
	if err != nil {
		return nil, err
	}
	return parseStatus(text)
}

// readRecord returns the text of a file in /proc that is given whole by one
// read(2) if that leaves room (fs/seq_file.c, seq_read_iter; fs/proc/base.c,
// proc_pid_auxv_read). It is on the way of every batch: os.ReadFile makes three
// times as many system calls.
func readRecord(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		n, err := eintr.Get(func() (int, error) { return unix.Pread(fd, buf, 0) })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if n < len(buf) {
			return buf[:n], nil
		}
		buf = make([]byte, 4*len(buf))
	}
}

// parseStatus reads the text of /proc/PID/status (fs/proc/array.c,
// proc_pid_status). Lines that an older kernel lacks leave zeros.
func parseStatus(text []byte) (*Status, error) {
	st := new(Status)
	memory, kthread := false, -1
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(value)
		var err error
		switch string(key) {
		case "State":
			if len(value) == 0 {
				return nil, fmt.Errorf("task status without a state")
			}
			st.State = value[0]
		case "Tgid":
			st.TGID, err = strconv.Atoi(string(value))
		case "TracerPid":
			st.TracerPID, err = strconv.Atoi(string(value))
		case "Kthread": // since Linux 6.8
			kthread, err = strconv.Atoi(string(value))
		case "VmSize":
			memory = true
		case "SigBlk":
			st.Blocked, err = strconv.ParseUint(string(value), 16, 64)
		case "SigIgn":
			st.Ignored, err = strconv.ParseUint(string(value), 16, 64)
		case "SigCgt":
			st.Caught, err = strconv.ParseUint(string(value), 16, 64)
		case "Seccomp":
			st.Seccomp, err = strconv.Atoi(string(value))
		}
		if err != nil {
			return nil, fmt.Errorf("task status, line %q: %w", line, err)
		}
	}
	if st.State == 0 || st.TGID <= 0 {
		return nil, fmt.Errorf("task status without state or thread group")
	}
	// Without the Kthread line: a task with no memory that is not a zombie.
	st.KernelThread = kthread == 1 || kthread < 0 && !memory && st.State != 'Z' && st.State != 'X'
	return st, nil
}
