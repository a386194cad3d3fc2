package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxRights is how many descriptors one message may carry (SCM_MAX_FD,
// include/net/scm.h).
const maxRights = 253

// channel is our end of the socket pair made in a target. Descriptions travel
// to the target in it; the target says in it that it is prepared; and its end
// of life, seen from either side, is an event: the target reads our closing as
// "look at the verdict", we read the target's as "done".
type channel struct {
	file *os.File
	pid  int
}

// send queues one message with files' descriptions and a number. It never
// blocks: a target that reads too late is an error, not a wait.
func (c *channel) send(number int32, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	err := unix.Sendmsg(int(c.file.Fd()), binary.NativeEndian.AppendUint32(nil, uint32(number)), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil {
		return fmt.Errorf("sending %d descriptions to process %d: %w", len(fds), c.pid, err)
	}
	return nil
}

// errClosed says that the target closed its end.
var errClosed = errors.New("the channel is closed")

// receive waits for one byte from the target until deadline.
func (c *channel) receive(deadline time.Time) (byte, error) {
	if err := c.poll(unix.POLLIN, deadline); err != nil {
		return 0, err
	}
	var b [1]byte
	n, err := unix.Read(int(c.file.Fd()), b[:])
	switch {
	case err != nil:
		return 0, fmt.Errorf("hearing from process %d: %w", c.pid, err)
	case n == 0:
		return 0, errClosed
	}
	return b[0], nil
}

// awaitClose waits until the target has closed its end.
func (c *channel) awaitClose(deadline time.Time) error {
	for {
		_, err := c.receive(deadline)
		switch {
		case errors.Is(err, errClosed), errors.Is(err, unix.ECONNRESET):
			return nil
		case err != nil:
			return err
		}
	}
}

// poll waits for events (or the end of the connection) until deadline.
func (c *channel) poll(events int16, deadline time.Time) error {
	fds := []unix.PollFd{{Fd: int32(c.file.Fd()), Events: events}}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("hearing from process %d: %w", c.pid, os.ErrDeadlineExceeded)
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("hearing from process %d: %w", c.pid, err)
		}
	}
}

// hangUp tells the target to look at the verdict. Messages already queued stay
// readable (net/unix/af_unix.c unix_shutdown), and we still see it close.
func (c *channel) hangUp() error {
	if err := unix.Shutdown(int(c.file.Fd()), unix.SHUT_WR); err != nil {
		return fmt.Errorf("ending the wait of process %d: %w", c.pid, err)
	}
	return nil
}

func (c *channel) close() { c.file.Close() }
