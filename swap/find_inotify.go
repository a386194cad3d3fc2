package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

// inotifyRead is an inotify descriptor that watches files of the file system.
type inotifyRead struct {
	ref     FDRef
	watches []watch // those on the file system
	next    int     // a number beyond all of its watches
}

// inotify is an inotify instance, as the table that moves its watches has it.
type inotify struct {
	fd      int
	next    int
	watches []*Watch
}

// Watch is an inotify watch of an inode of the file system.
type Watch struct {
	Number int    // wd
	Mask   uint32 // IN_…
	Path   string // from the file system's root; known once it is planned
	Refs   []FDRef

	Replacement *os.File // O_PATH; nil until planned

	handle mounts.Handle
	old    *os.File // O_PATH; the plan's
	attr   attributes
}

// readInotify notes an instance that watches files of dev, if all is told that
// it takes to move its watches.
func (k *kindsRead) readInotify(dev uint64, ref FDRef, info *fdInfo, obstacle func(resource, reason, remedy string)) {
	in := inotifyRead{ref: ref, next: 1}
	for _, w := range info.watches {
		in.next = max(in.next, w.wd+1)
		if w.hasDev && w.sdev != kernelDev(dev) {
			continue
		}
		if reason := inotifyObstacle(&w); reason != "" {
			obstacle(fmt.Sprintf("fd %d (inotify)", ref.FD), reason, "remove the watches or stop the process")
			return
		}
		in.watches = append(in.watches, w)
	}
	k.inotifies = append(k.inotifies, in)
}

// inotifyObstacle says what can't be told of a watch, if anything.
func inotifyObstacle(w *watch) string {
	switch {
	case !w.hasDev:
		return "the kernel does not tell of which device what it watches is"
	case w.handle.Bytes == "":
		return "the kernel does not tell which file it watches"
	case w.wd < 1:
		return "the kernel does not tell the number of a watch"
	}
	return ""
}

// watchesFor says whether r has inotify watches through a table.
func (r *reading) watchesFor(t *tableRead) bool {
	return slices.ContainsFunc(r.kinds.inotifies, func(i inotifyRead) bool { return i.ref.Task == t.tasks[0] })
}

// addInotifies gives each instance to a table that has it.
func (a *assembly) addInotifies(readings []*reading) {
	var reads []inotifyRead
	for _, r := range readings {
		reads = append(reads, r.kinds.inotifies...)
	}
	for _, class := range classes(reads, func(x, y inotifyRead) (int, error) {
		return kcmp(x.ref.TID, y.ref.TID, kcmpFile, x.ref.FD, y.ref.FD)
	}) {
		slices.SortFunc(class, func(x, y inotifyRead) int { return compareTasks(x.ref.Task, y.ref.Task) })
		var tasks []Task
		var refs []FDRef
		for _, c := range class {
			tasks, refs = append(tasks, c.ref.Task), append(refs, c.ref)
		}
		inside, outsider := a.within(tasks)
		if !inside {
			continue
		}
		a.notShared(tasks, fmt.Sprintf("fd %d (inotify)", refs[0].FD), outsider)
		for _, c := range class {
			i := slices.IndexFunc(a.Tables, func(t *FDTable) bool { return t.has(c.ref.Task) })
			if i < 0 {
				continue
			}
			in := &inotify{fd: c.ref.FD, next: c.next}
			for _, w := range c.watches {
				watch := &Watch{Number: w.wd, Mask: w.mask, Refs: refs, handle: w.handle}
				in.watches = append(in.watches, watch)
				a.Watches = append(a.Watches, watch)
			}
			a.Tables[i].inotifies = append(a.Tables[i].inotifies, in)
			break
		}
	}
}

// resolveWatches finds out which files are watched: the kernel tells their
// handles only, but has them in memory. It asks no daemon, unless the kernel
// remembers no name of a directory; so it is not waited for long.
func (p *Plan) resolveWatches(ctx context.Context, u *Usage) {
	if p.handled == nil {
		p.handled = map[mounts.Handle]mounts.Handled{}
	}
	var ask []mounts.Handle
	for _, w := range u.Watches {
		if h, known := p.handled[w.handle]; (!known || h.Err != nil) && !slices.Contains(ask, w.handle) {
			ask = append(ask, w.handle)
		}
	}
	if len(ask) > 0 {
		p.openHandles(ctx, ask)
	}
	for _, w := range u.Watches {
		h := p.handled[w.handle]
		var st unix.Statx_t
		err := h.Err
		if err == nil {
			err = unix.Statx(int(h.File.Fd()), "", unix.AT_EMPTY_PATH|quiet, unix.STATX_TYPE|unix.STATX_INO, &st)
		}
		switch {
		case err == nil && strings.HasSuffix(h.Path, deletedMark):
			p.Obstacles = append(p.Obstacles, w.obstacle("it watches "+printable(h.Path)+", which is unlinked, or called so"))
		case errors.Is(err, mounts.ErrNoPath), errors.Is(err, unix.ESTALE):
			p.Obstacles = append(p.Obstacles, w.obstacle("the kernel remembers no name of what it watches (stat it, and try again)"))
		case err != nil:
			p.Obstacles = append(p.Obstacles, w.obstacle(fmt.Sprintf("what it watches can't be told (%v)", err)))
		default:
			w.Path, w.old, w.attr = h.Path, h.File, attributes{Statx_t: st}
		}
	}
}

func (p *Plan) openHandles(ctx context.Context, handles []mounts.Handle) {
	type answer struct {
		found []mounts.Handled
		err   error
	}
	asked := make(chan answer, 1)
	from := p.From.Mount
	go func() {
		found, err := mounts.OpenByHandle(from, handles)
		asked <- answer{found, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var a answer
	select {
	case a = <-asked:
	case <-timer.C:
		a.err = errors.New("the way there leads through a file system that hangs")
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	for i, h := range handles {
		if a.err != nil {
			p.handled[h] = mounts.Handled{Err: a.err}
		} else {
			p.handled[h] = a.found[i]
		}
	}
}

// closeHandled closes what resolveWatches has opened.
func (p *Plan) closeHandled() {
	for _, h := range p.handled {
		if h.File != nil {
			h.File.Close()
		}
	}
	p.handled = nil
}

func (w *Watch) obstacle(reason string) Obstacle {
	ref := w.Refs[0]
	return Obstacle{
		PID: ref.PID, Process: processName(ref.PID), Resource: fmt.Sprintf("fd %d (inotify), watch %d", ref.FD, w.Number),
		Reason: reason, Remedy: "remove the watch or stop the process",
	}
}

// watchJobs lists what the watches need.
func (o *opener) watchJobs(u *Usage) (jobs []*opening) {
	var from *Mount
	for _, m := range u.Mounts {
		if m.ID == o.plan.From.Mount.ID {
			from = m
		}
	}
	for _, w := range u.Watches {
		if w.old == nil || from == nil {
			continue // an obstacle already
		}
		ref := w.Refs[0]
		jobs = append(jobs, &opening{
			want: fileWant{from.ID, w.Path, w.attr.Ino, uint32(w.attr.Mode) & unix.S_IFMT, unix.O_PATH, -1},
			attr: &w.attr, task: ref.Task, mount: from,
			resource: fmt.Sprintf("fd %d (inotify), watch %d → %s", ref.FD, w.Number, printable(w.Path)),
			done:     func(r *replacement) { w.Replacement = r.file },
		})
	}
	return jobs
}

// unreadEvents finds the instances that have events which nobody has read: they
// would be lost, since moving a watch leaves an event that must be taken away.
func unreadEvents(u *Usage) (list []Obstacle) {
	for _, t := range u.Tables {
		for _, in := range t.inotifies {
			ref := in.watches[0].Refs[0]
			fd, err := takeFD(ref)
			if err != nil {
				continue // closed since
			}
			n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
			unix.Close(fd)
			if err == nil && n > 0 {
				list = append(list, Obstacle{
					PID: ref.PID, Process: processName(ref.PID), Resource: fmt.Sprintf("fd %d (inotify)", ref.FD),
					Reason: fmt.Sprintf("%d bytes of events in it are unread, and would be lost", n),
					Remedy: "let the process read them",
				})
			}
		}
	}
	return list
}

// lazyReader is how long a process may take to read its events.
const lazyReader = 300 * time.Millisecond

// eventObstacles is unreadEvents of processes that run, and so may be about to
// read what there is. The kernel tells nobody when it has been.
func eventObstacles(ctx context.Context, u *Usage) []Obstacle {
	ctx, cancel := context.WithTimeout(ctx, lazyReader)
	defer cancel()
	return awaitEventsRead(ctx, u)
}

// awaitEventsRead waits until all events are read, and returns what is not when
// ctx ends.
func awaitEventsRead(ctx context.Context, u *Usage) []Obstacle {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		list := unreadEvents(u)
		if len(list) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return list
		}
	}
}

// stopInQuiet is stopAll, at a moment when all events have been read.
func (r *run) stopInQuiet(ctx context.Context) error {
	for {
		if err := r.stopAll(ctx); err != nil {
			return err
		}
		if len(unreadEvents(r.plan.Usage)) == 0 {
			return nil
		}
		if err := r.letGo(); err != nil {
			return err
		}
		if list := awaitEventsRead(ctx, r.plan.Usage); len(list) > 0 {
			return &RefusedError{list}
		}
	}
}
