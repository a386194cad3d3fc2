package swap

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownNumbers is how many descriptors a batch has beside those of files: the
// pair, the verdict, the four directories, the program, and one to spare.
const ownNumbers = 9

// roomFor tells for how many further descriptors task's table has numbers. t is what
// is to be swapped of that table, or nil: the limit may have been lowered below the
// number of one of those, and then nothing can be put in its place (fs/file.c,
// ksys_dup3).
func roomFor(task Task, t *FDTable) (int, error) {
	limit, err := openFilesLimit(task.PID)
	if err != nil {
		return 0, err
	}
	if t != nil {
		for _, fd := range t.FDs {
			if fd.Num >= limit {
				return 0, fmt.Errorf("process %d: fd %d is above the limit of %d descriptors, so nothing can take its place: raise it (prlimit --nofile)",
					task.PID, fd.Num, limit)
			}
		}
	}
	open, err := openDescriptors(task)
	if err != nil {
		return 0, fmt.Errorf("counting the descriptors of process %d: %w", task.PID, err)
	}
	free := limit - open - ownNumbers
	if free < 1 {
		return 0, fmt.Errorf("process %d: %d of %d descriptors are open, and %d free ones are needed",
			task.PID, open, limit, ownNumbers+1)
	}
	return free, nil
}

// openDescriptors counts what is in task's table. Since Linux 6.2 that is the
// size of the directory (fs/proc/fd.c proc_fd_getattr).
func openDescriptors(task Task) (int, error) {
	dir := fmt.Sprintf("/proc/%d/task/%d/fd", task.PID, task.TID)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, err
	}
	if st.Size > 0 {
		return int(st.Size), nil
	}
	names, err := os.ReadDir(dir)
	return len(names), err
}

// openFilesLimit asks for RLIMIT_NOFILE. For another user's process prlimit(2)
// wants CAP_SYS_RESOURCE; /proc/PID/limits takes longer and wants nothing.
func openFilesLimit(pid int) (int, error) {
	var rlimit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &rlimit); err == nil && rlimit.Cur <= 1<<30 {
		return int(rlimit.Cur), nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, fmt.Errorf("asking for the descriptor limit of process %d: %w", pid, err)
	}
	limit, err := parseOpenFilesLimit(string(text))
	if err != nil {
		return 0, fmt.Errorf("the descriptor limit of process %d: %w", pid, err)
	}
	return limit, nil
}

// parseOpenFilesLimit finds the soft limit in the text of /proc/PID/limits
// (fs/proc/base.c proc_pid_limits). fs.nr_open bounds it, so it is a number.
func parseOpenFilesLimit(text string) (int, error) {
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, "Max open files")
		if !found {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			break
		}
		n, err := strconv.Atoi(fields[0])
		if err != nil {
			return 0, fmt.Errorf("limit of open files: %w", err)
		}
		return n, nil
	}
	return 0, errors.New("no line of open files")
}
