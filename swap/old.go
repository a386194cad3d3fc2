package swap

import (
	"fmt"
	"os"
	"strconv"
)

// oldState is what is known, without asking it, of who serves the old file
// system.
type oldState int

const (
	oldAnswers oldState = iota // as far as can be seen
	oldDead                    // nobody holds its /dev/fuse: the kernel itself fails every request
	oldStopped                 // all who hold that are stopped: every request waits
	oldEnds                    // whatever it is: its requests are going to be ended
)

// Abort says that the daemon of the old file system hangs, or may: it is not
// asked anything, and its connection is ended when everybody is stopped.
func Abort() Option { return func(p *Plan) { p.abort = true } }

// AcceptLoss says that what only the daemon of the old file system could tell
// may be lost, if it does not answer: see [Plan.Losses].
func AcceptLoss() Option { return func(p *Plan) { p.acceptLoss = true } }

// Silent says that the old file system is not asked anything: its daemon is
// dead, or stopped, or its requests are to be ended.
func (p *Plan) Silent() bool { return p.old != oldAnswers }

// asks says that the old file system may be asked.
func (p *Plan) asks() bool { return p.AskOld && !p.Silent() }

// judgeOld finds out what the old file system's daemon is up to.
func (p *Plan) judgeOld(usage *Usage) {
	switch {
	case p.abort:
		p.old = oldEnds
	case len(usage.Servers) == 0:
		p.old = oldDead
	case allStopped(usage.Servers):
		p.old = oldStopped
	default:
		p.old = oldAnswers
	}
}

// oldObstacles are those that a silent daemon makes.
func (p *Plan) oldObstacles(usage *Usage) []Obstacle {
	if p.old != oldStopped || len(usage.Processes) == 0 {
		return nil
	}
	var list []Obstacle
	for _, pid := range usage.Servers {
		list = append(list, Obstacle{
			PID: pid, Process: processName(pid), Resource: "the daemon of --from",
			Reason: "it is stopped, and closing a file waits for it",
			Remedy: "let it go on, or say --abort",
		})
	}
	return list
}

// allStopped says whether no thread of the processes runs, and none will by
// itself.
func allStopped(pids []int) bool {
	for _, pid := range pids {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			continue // gone
		}
		for _, t := range tasks {
			text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/stat")
			if err != nil {
				continue
			}
			stat, err := parseStat(text)
			if err != nil || stat.state != 'T' && stat.state != 't' && !stat.gone() {
				return false
			}
		}
	}
	return true
}
