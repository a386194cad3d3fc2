package swap

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// signalObstacles finds directories that may tell somebody of changes by
// signals (F_NOTIFY, fs/notify/dnotify/dnotify.c). The kernel shows nothing of
// that but the owner that it sets, which nobody needs otherwise: no file system
// sends signals for a directory. A copy of a directory's description may be
// closed whatever its daemon does: there is nothing to flush.
func signalObstacles(u *Usage) (list []Obstacle) {
	for _, d := range u.Descriptions {
		if d.Type != unix.S_IFDIR || d.Flags&unix.O_PATH != 0 {
			continue
		}
		ref := d.Refs[0]
		fd, err := takeFD(ref)
		if err != nil {
			continue // closed since: whoever looks again sees what came of it
		}
		o, err := readOwner(fd)
		unix.Close(fd)
		if err == nil && o.pid == 0 {
			continue
		}
		reason := "it has an owner for signals (F_SETOWN), so that F_NOTIFY may be in force, which can't be told"
		if err != nil {
			reason = fmt.Sprintf("its owner for signals can't be told (%v)", err)
		}
		list = append(list, Obstacle{
			PID: ref.PID, Process: processName(ref.PID), Resource: fmt.Sprintf("fd %d → %s", ref.FD, printable(d.Path)),
			Reason: reason, Remedy: "close it",
		})
	}
	return list
}
