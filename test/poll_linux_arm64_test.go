package test

import (
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// startPoll makes a puppet call ppoll(2), there being no poll, for one descriptor,
// for ever if the limit is negative.
func startPoll(p *rig.Puppet, pollfd []byte, limit time.Duration) *rig.Pending {
	if limit < 0 {
		return p.Start(unix.SYS_PPOLL, pollfd, 1, 0, 0, 0)
	}
	return p.Start(unix.SYS_PPOLL, pollfd, 1, timespec(limit), 0, 0)
}
