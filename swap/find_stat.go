package swap

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// procStat is what the search needs of /proc/PID/stat (fs/proc/array.c
// do_task_stat; proc(5) numbers the fields).
type procStat struct {
	comm       string
	state      byte   // field 3
	ppid       int    // field 4
	flags      uint64 // field 9: PF_…
	threads    int    // field 20
	start      uint64 // field 22, in clock ticks since boot
	startStack uint64 // field 28: where the stack began; 0 if hidden or none
}

// kernelThread is PF_KTHREAD of include/linux/sched.h.
const kernelThread = 0x00200000

func (s *procStat) kernel() bool { return s.flags&kernelThread != 0 }

// gone says that the task has exited and only waits for its parent or for its
// threads.
func (s *procStat) gone() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// compat says whether the program is a 32-bit one: its stack began below
// 4 GiB, where no 64-bit program's does.
func (s *procStat) compat() bool { return s.startStack > 1 && s.startStack < 1<<32 }

var errStat = errors.New("not understood")

// parseStat reads a stat file. The command's name, in parentheses, may hold
// anything, parentheses and spaces among it.
func parseStat(text []byte) (procStat, error) {
	var s procStat
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return s, fmt.Errorf("stat %q: %w", text, errStat)
	}
	s.comm = string(text[open+1 : end])
	fields := strings.Fields(string(text[end+1:])) // from the 3rd on
	if len(fields) < 26 || len(fields[0]) != 1 {
		return s, fmt.Errorf("stat %q: %w", text, errStat)
	}
	s.state = fields[0][0]
	var errs [5]error
	s.ppid, errs[0] = strconv.Atoi(fields[4-3])
	s.flags, errs[1] = strconv.ParseUint(fields[9-3], 10, 64)
	s.start, errs[2] = strconv.ParseUint(fields[22-3], 10, 64)
	s.startStack, errs[3] = strconv.ParseUint(fields[28-3], 10, 64)
	s.threads, errs[4] = strconv.Atoi(fields[20-3])
	if err := errors.Join(errs[:]...); err != nil {
		return s, fmt.Errorf("stat %q: %w", text, errStat)
	}
	return s, nil
}

// credentials are a task's, as file systems see them.
type credentials struct {
	uid, gid int // of file system access (fsuid, fsgid)
	groups   []int
}

// parseStatus reads who traces a task (0: nobody) and its credentials out of
// /proc/PID/status.
func parseStatus(text []byte) (tracer int, cred credentials, err error) {
	var have int
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		switch string(key) {
		case "TracerPid":
			tracer, err = strconv.Atoi(string(bytes.TrimSpace(value)))
			have |= 1
		case "Uid", "Gid": // real, effective, saved, file system
			fields := strings.Fields(string(value))
			if len(fields) != 4 {
				return 0, cred, fmt.Errorf("status line %q: %w", line, errStat)
			}
			var id int
			id, err = strconv.Atoi(fields[3])
			if string(key) == "Uid" {
				cred.uid = id
				have |= 2
			} else {
				cred.gid = id
				have |= 4
			}
		case "Groups":
			for _, f := range strings.Fields(string(value)) {
				var g int
				if g, err = strconv.Atoi(f); err != nil {
					break
				}
				cred.groups = append(cred.groups, g)
			}
		}
		if err != nil {
			return 0, cred, fmt.Errorf("status line %q: %w", line, errStat)
		}
	}
	if have != 7 {
		return 0, cred, fmt.Errorf("status without TracerPid, Uid or Gid: %w", errStat)
	}
	return tracer, cred, nil
}
