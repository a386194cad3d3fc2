package criuhook

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"spfs/internal/devfuse"
	"spfs/internal/fusectl"
	"spfs/internal/fusedev"
	"spfs/internal/proctree"
)

// guard ends connections whose daemons have ended before they ever ran. CRIU
// gives a restore up until it has let the tree go, and kills it; but what the
// clients have open is closed then, which asks the daemon. CRIU and this process
// have its device open still, and so they would wait for it for ever, and CRIU
// for them.
type guard struct {
	stop    *fusedev.Stop
	running sync.WaitGroup
	close   []func()
}

// guardConnections begins when the tree of root has its descriptors.
func guardConnections(root int, all []*adopted) (*guard, error) {
	pids, err := proctree.Of(root)
	if err != nil {
		return nil, err
	}
	devices, err := devfuse.Find(pids)
	if err != nil {
		return nil, err
	}
	g := new(guard)
	if g.stop, err = fusedev.NewStop(); err != nil {
		return nil, err
	}
	for _, a := range all {
		if err := g.add(a, devices); err != nil {
			g.end()
			return nil, fmt.Errorf("watching the daemon of %s: %w", a.fs.Mounts[0].Point, err)
		}
	}
	return g, nil
}

func (g *guard) add(a *adopted, devices []*devfuse.Description) error {
	control, err := fusectl.Open(a.Dev())
	if err != nil {
		return err
	}
	g.close = append(g.close, func() { control.Close() })
	var daemons []int // pidfds
	for _, d := range devices {
		if d.Connection != uint64(unix.Minor(a.Dev())) {
			continue
		}
		for _, h := range d.Holders {
			fd, err := unix.PidfdOpen(h.PID, 0)
			if err != nil {
				return fmt.Errorf("opening a pidfd of process %d: %w", h.PID, err)
			}
			g.close = append(g.close, func() { unix.Close(fd) })
			daemons = append(daemons, fd)
		}
	}
	if len(daemons) == 0 {
		return errors.New("no process that was restored has its /dev/fuse")
	}
	g.running.Add(1)
	go func() {
		defer g.running.Done()
		for _, fd := range daemons {
			if told, err := g.stop.Wait(fd); told || err != nil {
				return
			}
		}
		_ = control.Abort()
	}()
	return nil
}

// end leaves the connections to their daemons.
func (g *guard) end() {
	g.stop.Tell()
	g.running.Wait()
	for _, f := range g.close {
		f()
	}
	g.stop.Close()
}
