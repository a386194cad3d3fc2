package test

import (
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// startPoll makes a puppet call poll(2) for one descriptor, for ever if the limit
// is negative.
func startPoll(p *rig.Puppet, pollfd []byte, limit time.Duration) *rig.Pending {
	return p.Start(unix.SYS_POLL, pollfd, 1, milliseconds(limit))
}

func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int(d / time.Millisecond)
}
