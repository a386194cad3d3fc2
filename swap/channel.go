package swap

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxRights is how many descriptors one message may carry (SCM_MAX_FD,
// include/net/scm.h).
const maxRights = 253

// channel is our end of the socket pair made in a target. Descriptions travel
// to the target in it, and the target takes its end, which our death brings
// about as well, for "look at the verdict".
type channel struct {
	file *os.File
	pid  int
}

// send queues one message with files' descriptions and a number. It never
// blocks: a target that reads too late is an error, not a wait.
func (c *channel) send(number int32, files message) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int((*f).Fd())
	}
	err := unix.Sendmsg(int(c.file.Fd()), binary.NativeEndian.AppendUint32(nil, uint32(number)), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil {
		return fmt.Errorf("sending %d descriptions to process %d: %w", len(fds), c.pid, err)
	}
	return nil
}

// hangUp tells the target to look at the verdict. Messages already queued stay
// readable (net/unix/af_unix.c unix_shutdown).
func (c *channel) hangUp() error {
	if err := unix.Shutdown(int(c.file.Fd()), unix.SHUT_WR); err != nil {
		return fmt.Errorf("ending the wait of process %d: %w", c.pid, err)
	}
	return nil
}

func (c *channel) close() { c.file.Close() }
