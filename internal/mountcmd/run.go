package mountcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounts says whether a command says where it mounts: whether it has a %m.
func Mounts(command string) bool { return strings.Contains(command, "%m") }

// expand puts a directory in place of %m, quoted for the shell; "%%" stands
// for a percent sign.
func expand(command, dir string) string {
	quoted := "'" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
	return strings.NewReplacer("%%", "%", "%m", quoted).Replace(command)
}

// shownOutput bounds what is kept and shown of a command's output.
const shownOutput = 64 << 10

// Run runs a command and waits until something is mounted on dir. A command
// that stays, because it is the daemon itself, is left running in a session of
// its own; on failure it is killed.
func Run(ctx context.Context, command, dir string) error {
	output, err := boundedFile(shownOutput)
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := exec.Command("sh", "-c", expand(command, dir))
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	fail := func(err error) error {
		return fmt.Errorf("%w%s", err, tail(output))
	}
	table, err := openMountTable()
	if err != nil {
		return fail(err)
	}
	defer unix.Close(table)
	// Its other end is closed when the command has ended, which wakes poll.
	ended, end, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer ended.Close()
	if err := cmd.Start(); err != nil {
		end.Close()
		return fail(err)
	}
	result := make(chan error, 1)
	go func() {
		result <- cmd.Wait()
		end.Close()
	}()
	err = waitMounted(ctx, dir, table, ended, result)
	if err != nil {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		return fail(err)
	}
	return nil
}

// waitMounted returns when something is mounted on dir, when ctx ends, or when
// the command has ended without mounting anything; its error is then in result.
func waitMounted(ctx context.Context, dir string, table int, ended *os.File, result <-chan error) error {
	// poll(2) has no context: its end is the end of this pipe.
	wake, waker, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	stop := context.AfterFunc(ctx, func() { waker.Close() })
	defer func() {
		if stop() {
			waker.Close()
		}
	}()
	commandEnded := false
	for {
		mounted, err := isMounted(dir)
		if err != nil || mounted {
			return err
		}
		if commandEnded {
			if err := <-result; err != nil {
				return fmt.Errorf("its command failed (%w)", err)
			}
			return fmt.Errorf("its command ended and has not mounted anything on %s (%%m)", dir)
		}
		fds := []unix.PollFd{
			// fs/proc_namespace.c mounts_poll: an event is an error
			// and urgent data, since the last poll or the open.
			{Fd: int32(table), Events: unix.POLLPRI},
			{Fd: int32(ended.Fd()), Events: unix.POLLIN},
			{Fd: int32(wake.Fd()), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[1].Revents != 0 {
			commandEnded = true
		} else if ctx.Err() != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("nothing was mounted on %s (%%m) in time", dir)
			}
			return ctx.Err()
		}
	}
}

// openMountTable opens mountinfo to poll it. An os.File of it would be watched
// by the Go runtime as well, and the kernel tells an event to the first who
// polls: the event count is the open file's (fs/proc_namespace.c mounts_poll).
func openMountTable() (int, error) {
	fd, err := unix.Open("/proc/thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mountinfo: %w", err)
	}
	return fd, nil
}

func isMounted(dir string) (bool, error) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	return len(found) > 0, err
}

// boundedFile makes a file in memory that takes size bytes and no more:
// nobody reads what a daemon says once this process has ended.
func boundedFile(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("spfs-mount-output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "output")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing a memfd: %w", err)
	}
	return f, nil
}

// shownLines is how many lines of a failed command are shown.
const shownLines = 5

// tail formats the last lines that a command wrote. The position in the file
// is shared with it.
func tail(f *os.File) string {
	end, err := f.Seek(0, io.SeekCurrent)
	if err != nil || end == 0 {
		return ""
	}
	b := make([]byte, end)
	n, _ := f.ReadAt(b, 0)
	lines := strings.Split(strings.TrimSpace(string(bytes.Trim(b[:n], "\x00"))), "\n")
	if len(lines) > shownLines {
		lines = lines[len(lines)-shownLines:]
	}
	return "\n  " + strings.Join(lines, "\n  ")
}
