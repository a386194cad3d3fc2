package swap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/internal/fault"
	"spfs/internal/mounts"
	"spfs/internal/ptrace"
)

// Recovery says how [Recover] is done.
type Recovery struct {
	// PID is the swapper whose runs are recovered; all that were cut off if 0.
	PID int
	// Kept is what the swapper gave to [Options.Keep]: its journal, which is as
	// locked as it was then, the verdict, the old mount, and those that were to be
	// attached. Only that run is recovered then, and one for stragglers that it had
	// begun at its end. If it is gone, and the
	// run had committed, all had been done, and what is returned says no more than
	// that. Without the mounts the new one is cloned once more from where the
	// user mounted it, and what processes have open leads to it through another
	// mount, which is attached nowhere.
	Kept []*os.File
	// ShutGate shuts the gate of the stub that serves the device, which a run
	// that did not commit had opened, or had been about to.
	ShutGate func(dev uint64) error
}

// Recovered says what was found of a run that was cut off, and done about it.
// Its JSON form is a stable contract.
type Recovered struct {
	PID       int      `json:"pid"` // of the swapper
	From      string   `json:"from"`
	To        string   `json:"to"`
	Swapped   bool     `json:"swapped"`   // the run had committed: all are on the new file system
	Processes int      `json:"processes"` // of the run, that are still there
	Cleaned   []int    `json:"cleaned"`   // processes in which something of the run had been left
	Mounts    int      `json:"mounts"`    // mount points changed now, as the run had been about to
	Problems  []string `json:"problems"`  // what is left to do
}

// Recover finishes what swappers that were killed have begun. Processes need
// nobody for that: by the verdict, all of them end up on the old file system or
// all of them on the new. What they can't take away themselves is taken away
// here, and the mount points are made to fit. A run under way is waited for.
//
// It returns what it found, also when it fails: what it could not do is left,
// and the next call tries again.
func Recover(ctx context.Context, how Recovery) ([]Recovered, error) {
	var journals []*journal
	var err error
	var done []Recovered
	if len(how.Kept) > 1 {
		journals, done, err = keptJournal(how.Kept[0], how.Kept[1])
		how.Kept = how.Kept[2:]
		if len(journals) > 0 && err == nil {
			journals, err = withStragglers(journals[0])
		}
	} else {
		journals, err = cutOff(ctx)
	}
	defer func() {
		for _, j := range journals {
			j.close()
		}
	}()
	if err != nil {
		return nil, err
	}
	all := append([]Recovered{}, done...)
	var errs []error
	for _, j := range journals {
		rec, err := j.read()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if rec == nil { // nothing was begun
			errs = append(errs, j.remove())
			continue
		}
		if how.PID != 0 && rec.PID != how.PID {
			continue
		}
		found, err := recoverRun(ctx, j, rec, how)
		if found != nil {
			all = append(all, *found)
		}
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

// cutOff returns the journals that nobody works on, locked. It waits for those
// that somebody does.
func cutOff(ctx context.Context) ([]*journal, error) {
	var found []*journal
	var busy []string
	err := withJournals(func(path string) error {
		j, err := openJournal(path, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			found = append(found, j)
		case errors.Is(err, unix.EWOULDBLOCK):
			busy = append(busy, path)
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
		return nil
	})
	for _, path := range busy {
		if err != nil {
			break
		}
		var j *journal
		if j, err = awaitJournal(ctx, path); j != nil {
			found = append(found, j)
		}
	}
	return found, err
}

// keptJournal is the journal whose directory a swapper has given away. If it had
// begun to remove it, there was nothing left to do, and done says what it was.
func keptJournal(dir, verdict *os.File) (kept []*journal, done []Recovered, err error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("finding the journal: %w", err)
	}
	if filepath.Dir(path) != journalDirectory || !strings.HasPrefix(filepath.Base(path), journalPrefix) {
		return nil, nil, fmt.Errorf("%s is no journal", path)
	}
	j := &journal{path: path, dir: dir}
	if _, err := os.Lstat(path); err == nil { // else the path ends in " (deleted)"
		kept = append(kept, j)
		if rec, err := j.read(); rec != nil || err != nil {
			return kept, nil, nil
		}
	}
	forward, err := wordOf(verdict)
	if forward {
		done = []Recovered{{Swapped: true, Cleaned: []int{}, Problems: []string{}}}
	}
	return kept, done, err
}

// withStragglers returns a journal, and that of a run for stragglers by the same swapper.
func withStragglers(j *journal) ([]*journal, error) {
	found := []*journal{j}
	rec, err := j.read()
	if rec == nil || err != nil {
		return found, nil // who reads it next tells
	}
	err = withJournals(func(path string) error {
		other, err := openJournal(path, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			return nil // somebody's who is at work, or gone
		}
		if r, err := other.read(); err != nil || r == nil || r.PID != rec.PID {
			other.close()
			return nil
		}
		found = append(found, other)
		return nil
	})
	return found, err
}

// awaitJournal takes a journal when its owner is done, and returns nil if it is
// gone then.
func awaitJournal(ctx context.Context, path string) (*journal, error) {
	type result struct {
		j   *journal
		err error
	}
	results := make(chan result)
	go func() { // flock(2) can't be told to give up
		j, err := openJournal(path, unix.LOCK_EX)
		select {
		case results <- result{j, err}:
		case <-ctx.Done():
			if j != nil {
				j.close()
			}
		}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("a run is under way, with the journal %s: %w", path, ctx.Err())
	case r := <-results:
		if errors.Is(r.err, os.ErrNotExist) {
			return nil, nil
		}
		if r.err != nil {
			return nil, r.err
		}
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			r.j.close()
			return nil, nil
		}
		return r.j, nil
	}
}

// withJournals calls do for every journal. No run can begin meanwhile: one that
// has made its journal holds it.
func withJournals(do func(path string) error) error {
	fd, err := unix.Open(journalDirectory, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", journalDirectory, err)
	}
	dir := os.NewFile(uintptr(fd), journalDirectory)
	defer dir.Close()
	if err := lockFile(dir, unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", journalDirectory, err)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("listing %s: %w", journalDirectory, err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, journalPrefix) {
			if err := do(filepath.Join(journalDirectory, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuseAfterCutOff refuses a run from a file system that an earlier one was
// cut off on.
func refuseAfterCutOff(dev uint64) error {
	return withJournals(func(path string) error {
		j, err := openJournal(path, unix.LOCK_SH|unix.LOCK_NB)
		if err != nil {
			return nil // somebody's who is at work, or gone
		}
		defer j.close()
		rec, err := j.read()
		if err != nil || rec == nil || rec.From.Dev != dev {
			return nil // Recover will say
		}
		return exit.Refuse(fmt.Errorf("an earlier run, of process %d, was cut off on this mount: run \"spfs-swap recover\" first", rec.PID))
	})
}

// recoverRun does for one run what is left to do.
func recoverRun(ctx context.Context, j *journal, rec *runRecord, how Recovery) (*Recovered, error) {
	forward, err := readVerdict(j.path)
	if err != nil {
		return nil, err
	}
	found := &Recovered{
		PID: rec.PID, From: string(rec.From.Path), To: string(rec.To.Path), Swapped: forward,
		Cleaned: []int{}, Problems: []string{},
	}
	var errs []error
	if forward {
		errs = append(errs, finishMounts(ctx, rec, how.Kept, found))
	}
	fault.Point("recover: mounts done")
	errs = append(errs, finishProcesses(ctx, rec, found))
	fault.Point("recover: processes done")
	errs = append(errs, removeMade(ctx, rec, found))
	switch {
	case forward && rec.Move:
		errs = append(errs, moveAway(ctx, rec))
	case !forward && rec.Gate && how.ShutGate != nil:
		errs = append(errs, how.ShutGate(rec.From.Dev))
	}
	if err := errors.Join(errs...); err != nil {
		found.Problems = append(found.Problems, strings.Split(err.Error(), "\n")...)
		return found, err
	}
	return found, j.remove()
}

// removeMade takes the names of files away that the run had made. Those of a
// run that committed have none any more.
func removeMade(ctx context.Context, rec *runRecord, found *Recovered) error {
	if len(rec.Made) == 0 {
		return nil
	}
	namespaces, err := mounts.List(ctx)
	if err != nil {
		return err
	}
	byInode := map[uint64]*mounts.Namespace{}
	for _, ns := range namespaces {
		defer ns.Close()
		byInode[ns.Inode] = ns
	}
	ns, now, err := rec.toMount(byInode)
	if err != nil {
		// Nobody can do more, now or later.
		found.Problems = append(found.Problems, fmt.Sprintf("a file %s… may be left on the new file system: %v", madeName, err))
		return nil
	}
	root, err := ns.Open(now)
	if err != nil {
		return err
	}
	return within(ctx, fmt.Sprintf("removing what was made on %s", rec.To.Path), func() error {
		defer root.Close()
		var errs []error
		for _, m := range rec.Made {
			errs = append(errs, m.remove(root, rec.Processes))
		}
		return errors.Join(errs...)
	})
}

// remove takes away the name, wherever it is. A mount that does not admit root
// admits a process of the run.
func (m madeRecord) remove(root *os.File, users []processRecord) error {
	var errs []error
	for _, in := range m.In {
		remove := func() error {
			dir, err := mounts.OpenBeneath(root, strings.TrimPrefix(string(in)+"/.", "/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
			if err == nil {
				defer dir.Close()
				err = unix.Unlinkat(int(dir.Fd()), string(m.Name), 0)
			}
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
				return nil
			}
			return err
		}
		err := remove()
		for _, p := range users {
			if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
				break
			}
			if p.alive() {
				err = doAs(Task{p.PID, p.PID}, remove)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("removing %s/%s on the new mount: %w", in, m.Name, err))
		}
	}
	return errors.Join(errs...)
}

// finishProcesses sees to it that nothing of the run is left in any process.
func finishProcesses(ctx context.Context, rec *runRecord, found *Recovered) error {
	tracer := ptrace.New()
	defer tracer.Close()
	var errs []error
	for _, p := range rec.Processes {
		if !p.alive() {
			continue
		}
		cleaned, err := finishProcess(ctx, tracer, p)
		if errors.Is(err, ptrace.ErrGone) {
			continue
		}
		found.Processes++
		if cleaned {
			found.Cleaned = append(found.Cleaned, p.PID)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p processRecord) alive() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	s, err := parseStat(text)
	return err == nil && s.start == p.Start
}

// handlerInterval is how long a signal handler that interrupted a batch's last
// steps is given until it is looked for again. There is no event for its return.
const handlerInterval = 10 * time.Millisecond

// finishProcess does it in one. It reports whether there was anything.
func finishProcess(ctx context.Context, tracer *ptrace.Tracer, p processRecord) (bool, error) {
	for {
		process, err := tracer.Seize(ctx, p.PID)
		if err != nil {
			return false, fmt.Errorf("looking for what was left in a process: %w", err)
		}
		var found bool
		if p.alive() { // and no other that has got the number since
			found, err = process.FinishResidue(ctx)
		}
		err = errors.Join(err, process.Release())
		if !errors.Is(err, ptrace.ErrResidueInUse) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return found, err
		case <-time.After(handlerInterval):
		}
	}
}

// finishMounts puts the new mount at those mount points that still show the old.
func finishMounts(ctx context.Context, rec *runRecord, kept []*os.File, found *Recovered) error {
	if len(rec.Mounts) == 0 {
		return nil
	}
	namespaces, err := mounts.List(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, ns := range namespaces {
			ns.Close()
		}
	}()
	byInode := map[uint64]*mounts.Namespace{}
	for _, ns := range namespaces {
		byInode[ns.Inode] = ns
	}
	// Copies of mounts can be told by their file system's number only, and that
	// by nothing else than that it can't be another's by now.
	var old *os.File
	if len(kept) > 0 {
		old = kept[0]
	} else if old = rec.holdOld(byInode); old != nil {
		defer old.Close()
	}
	var errs []error
	for i, m := range rec.Mounts {
		ns := byInode[m.Namespace]
		if ns == nil {
			continue // it went with its last process
		}
		var clone *os.File
		if i+1 < len(kept) {
			clone = kept[i+1]
		}
		changed, err := rec.finishMount(ns, m, clone, byInode)
		if changed {
			found.Mounts++
		}
		if m.Group != 0 {
			_, rejoined := ns.Rejoin(m.Parent, m.Group, namespaces)
			err = errors.Join(err, rejoined)
		}
		errs = append(errs, err)
	}
	if old == nil {
		return errors.Join(errs...)
	}
	late, err := changeLate(ctx, rec.From.Dev, func(m *mounts.Mount) (*os.File, error) { return rec.cloneTo(m, byInode) })
	found.Mounts += late
	return errors.Join(append(errs, err)...)
}

// finishMount does what is left of [mounts.Namespace.Attach]. It reports whether
// the mount point showed the old file system.
func (rec *runRecord) finishMount(ns *mounts.Namespace, m mountRecord, clone *os.File, namespaces map[uint64]*mounts.Namespace) (bool, error) {
	table, err := ns.Mounts()
	if err != nil {
		return false, err
	}
	point := string(m.Point)
	top := table.Top(point)
	switch {
	case top == nil:
		return false, fmt.Errorf("%s in %v: nothing is mounted there any more: mount %s there if it is to be", point, ns, rec.To.Path)
	case top.Dev == rec.To.Dev:
		return false, m.share(ns, top)
	}
	old, err := rec.openOld(ns, m, top)
	if old == nil {
		return false, err // somebody has put something else there since
	}
	defer old.Close()
	if below := table.ByID(top.Parent); below != nil && below.Point == point && below.Dev == rec.To.Dev {
		if err := ns.Detach(top); err != nil {
			return false, err
		}
		return true, m.share(ns, below)
	}
	if clone == nil {
		if clone, err = rec.cloneTo(top, namespaces); err != nil {
			return false, err
		}
		defer clone.Close()
	}
	return true, ns.Attach(clone, top)
}

// openOld opens top's root, if it is the very mount that m tells of.
func (rec *runRecord) openOld(ns *mounts.Namespace, m mountRecord, top *mounts.Mount) (*os.File, error) {
	if top.ID != m.ID || top.Dev != rec.From.Dev || top.Source != string(m.Source) || top.Root != string(m.Root) {
		return nil, nil
	}
	root, err := ns.Open(top)
	if err != nil {
		return nil, err
	}
	unique, err := mounts.UniqueID(root)
	if err != nil || unique != m.Unique {
		root.Close()
		return nil, err
	}
	return root, nil
}

// holdOld opens the old mount wherever it is still mounted; nil if nowhere.
func (rec *runRecord) holdOld(namespaces map[uint64]*mounts.Namespace) *os.File {
	for _, m := range rec.Mounts {
		ns := namespaces[m.Namespace]
		if ns == nil {
			continue
		}
		table, err := ns.Mounts()
		if err != nil {
			continue
		}
		if top := table.Top(string(m.Point)); top != nil {
			if root, _ := rec.openOld(ns, m, top); root != nil {
				return root
			}
		}
	}
	return nil
}

// share makes the new mount shared if the old one was.
func (m mountRecord) share(ns *mounts.Namespace, now *mounts.Mount) error {
	if !m.Shared || now.Shared != 0 {
		return nil
	}
	root, err := ns.Open(now)
	if err != nil {
		return err
	}
	defer root.Close()
	return ns.Share(root)
}

// toMount finds the new mount where the user has it.
func (rec *runRecord) toMount(namespaces map[uint64]*mounts.Namespace) (*mounts.Namespace, *mounts.Mount, error) {
	ns := namespaces[rec.To.Namespace]
	if ns == nil {
		return nil, nil, fmt.Errorf("the namespace in which %s was mounted is gone", rec.To.Path)
	}
	table, err := ns.Mounts()
	if err != nil {
		return nil, nil, err
	}
	now := table.Top(string(rec.To.Point))
	if now == nil || now.Dev != rec.To.Dev {
		return nil, nil, fmt.Errorf("%s is no longer mounted", rec.To.Path)
	}
	return ns, now, nil
}

// cloneTo makes the new mount for an old one once more.
func (rec *runRecord) cloneTo(old *mounts.Mount, namespaces map[uint64]*mounts.Namespace) (*os.File, error) {
	ns, now, err := rec.toMount(namespaces)
	if err != nil {
		return nil, err
	}
	var clone *os.File
	err = ns.Do(func(*os.File) error {
		root, err := mounts.Open(now)
		if err != nil {
			return err
		}
		defer root.Close()
		clone, err = cloneFor(old, root, string(rec.From.Root))
		return err
	})
	return clone, err
}

// moveAway takes the new mount off the place where the user mounted it, if it
// is still there.
func moveAway(ctx context.Context, rec *runRecord) error {
	namespaces, err := mounts.List(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, ns := range namespaces {
			ns.Close()
		}
	}()
	for _, ns := range namespaces {
		if ns.Inode != rec.To.Namespace {
			continue
		}
		table, err := ns.Mounts()
		if err != nil {
			return err
		}
		if now := table.Top(string(rec.To.Point)); now != nil && now.ID == rec.To.Mount && now.Dev == rec.To.Dev {
			return ns.Detach(now)
		}
	}
	return nil
}
