package swap

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that sleeps all the time is given up; not one that gets on, if slowly,
// as on a machine where it has to wait for others all the time.
func TestCrewGivesUpWhoSleeps(t *testing.T) {
	t.Parallel()
	var end [2]int
	if err := unix.Pipe2(end[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(end[1])
	sleeps, slow := &visit{pid: 1}, &visit{pid: 2}
	(&crew{ctx: context.Background(), visit: func(_ *reader, v *visit) {
		if v == sleeps {
			unix.Read(end[0], make([]byte, 1)) // until the test has ended
			unix.Close(end[0])
			return
		}
		for began := time.Now(); time.Since(began) < patience+patience/2; {
			nap := unix.NsecToTimespec(int64(patience / 10))
			unix.Nanosleep(&nap, nil)
		}
	}}).run([]*visit{sleeps, slow})
	if !sleeps.stuck {
		t.Error("one that sleeps was waited for")
	}
	if slow.stuck {
		t.Error("one that gets on was given up")
	}
}
