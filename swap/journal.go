package swap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/fault"
	"spfs/internal/mounts"
)

// journalDirectory is where the commands of this project keep what must
// outlive them; journalPrefix begins the names of ours.
const (
	defaultJournalDirectory = "/run/spfs"
	journalPrefix           = "swap-"
)

// journalDirectory is defaultJournalDirectory, but for tests.
var journalDirectory = defaultJournalDirectory

// journalVersion is of the format of the file.
const journalVersion = 1

// journal is what is written down of a run before it touches anything, so that
// [Recover] can finish for a swapper that was killed. It is a directory of its
// own, with the verdict beside the record:
//
//	/run/spfs/swap-XXXX/verdict   the word that decides; see verdict
//	/run/spfs/swap-XXXX/journal   a record, replaced as a whole
//
// The swapper holds a flock on the directory. One without belongs to a run that
// was cut off.
type journal struct {
	path string
	dir  *os.File

	written *runRecord
}

// runRecord is the content of the file. Paths are bytes: JSON knows text only.
type runRecord struct {
	Version   int             `json:"version"`
	PID       int             `json:"pid"` // of the swapper
	Began     time.Time       `json:"began"`
	From      endpointRecord  `json:"from"`
	To        endpointRecord  `json:"to"`
	Gate      bool            `json:"gate"` // a shut gate is, or was about to be, opened
	Move      bool            `json:"move"`
	Processes []processRecord `json:"processes"`
	Mounts    []mountRecord   `json:"mounts"` // those to change
	Made      []madeRecord    `json:"made,omitempty"`
}

type endpointRecord struct {
	Path      []byte `json:"path"` // as the user gave it
	Point     []byte `json:"point"`
	Namespace uint64 `json:"namespace"` // the swapper's
	Mount     int    `json:"mount"`
	Dev       uint64 `json:"dev"`
	Root      []byte `json:"root"`
}

// processRecord tells a process from another that got its number.
type processRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// mountRecord is a mount point of the old file system.
type mountRecord struct {
	ID        int    `json:"id"`
	Unique    uint64 `json:"unique"` // an id that no other mount gets; 0 if not known
	Namespace uint64 `json:"namespace"`
	Point     []byte `json:"point"`
	Source    []byte `json:"source"`
	Root      []byte `json:"root"`
	Shared    bool   `json:"shared"`
	Parent    int    `json:"parent"`
	Group     int    `json:"group"` // the parent's peer group, which it leaves for a moment; or 0
}

// madeRecord is a file that has a name on the new file system until the verdict.
type madeRecord struct {
	Name []byte   `json:"name"`
	In   [][]byte `json:"in"` // one of these directories, from the root of To's mount
}

// newJournal makes the directory, locked, and with no record in it: for
// Recover nothing has been begun.
func newJournal() (*journal, error) {
	if err := secureJournals(); err != nil {
		return nil, err
	}
	// Until it is locked, Recover would take it for one that was cut off.
	all, err := openJournal(journalDirectory, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer all.close()
	path, err := os.MkdirTemp(journalDirectory, journalPrefix) // mode 0700
	if err != nil {
		return nil, fmt.Errorf("making the journal: %w", err)
	}
	j, err := openJournal(path, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	return j, nil
}

// secureJournals makes the directory of journals if there is none. Only root
// can have put it into /run.
func secureJournals() error {
	if err := os.Mkdir(journalDirectory, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the directory of journals: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(journalDirectory, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", journalDirectory, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: it is not a directory that only its owner, user %d, can write", journalDirectory, os.Geteuid())
	}
	return nil
}

// openJournal opens the journal there, and locks it.
func openJournal(path string, how int) (*journal, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the journal %s: %w", path, err)
	}
	j := &journal{path: path, dir: os.NewFile(uintptr(fd), path)}
	if err := lockFile(j.dir, how); err != nil {
		j.dir.Close()
		return nil, fmt.Errorf("locking the journal %s: %w", path, err)
	}
	return j, nil
}

func lockFile(f *os.File, how int) error {
	return eintr.Retry(func() error { return unix.Flock(int(f.Fd()), how) })
}

func (j *journal) file(name string) string { return filepath.Join(j.path, name) }

// write replaces the record, all or nothing.
func (j *journal) write(r *runRecord) error {
	if err := j.replace(r); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.written = r
	return nil
}

func (j *journal) replace(r *runRecord) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	const next = "journal.new"
	f, err := os.OpenFile(j.file(next), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	fault.Point("journal written")
	if err := os.Rename(j.file(next), j.file("journal")); err != nil {
		return err
	}
	return j.dir.Sync()
}

// remove takes the journal away: there is nothing to recover.
func (j *journal) remove() error {
	// The record first: what is left without it says that nothing was begun.
	for _, name := range []string{"journal", "journal.new", "verdict"} {
		if err := os.Remove(j.file(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing the journal: %w", err)
		}
		fault.Point("journal removed")
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the journal: %w", err)
	}
	return nil
}

// close unlocks the journal.
func (j *journal) close() { j.dir.Close() }

// maxJournal bounds what is read of a record: a process takes about 40 bytes.
const maxJournal = 64 << 20

// read returns the record, or nil if none has been written.
func (j *journal) read() (*runRecord, error) {
	f, err := os.OpenFile(j.file("journal"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	if st.Size() > maxJournal {
		return nil, fmt.Errorf("the journal %s has %d bytes, of at most %d", f.Name(), st.Size(), maxJournal)
	}
	text := make([]byte, st.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	r, err := parseRecord(text)
	if err != nil {
		return nil, fmt.Errorf("the journal %s: %w", f.Name(), err)
	}
	return r, nil
}

// parseRecord reads a record, and believes nothing of it that would be a wrong
// number of a process, a mount or a path.
func parseRecord(text []byte) (*runRecord, error) {
	var r runRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, err
	}
	if r.Version != journalVersion {
		return nil, fmt.Errorf("version %d is not known, only %d", r.Version, journalVersion)
	}
	if r.PID <= 0 {
		return nil, fmt.Errorf("%d is no process id", r.PID)
	}
	for _, p := range r.Processes {
		if p.PID <= 1 {
			return nil, fmt.Errorf("%d is no process id", p.PID)
		}
	}
	for _, m := range r.Mounts {
		if !cleanPath(m.Point) || !cleanPath(m.Root) || m.ID < 0 || m.Parent < 0 || m.Group < 0 {
			return nil, fmt.Errorf("no mount is %d at %q, on %d", m.ID, m.Point, m.Parent)
		}
	}
	for _, m := range r.Made {
		if !ourName(string(m.Name)) || !slices.ContainsFunc(m.In, cleanPath) || slices.ContainsFunc(m.In, func(p []byte) bool { return !cleanPath(p) }) {
			return nil, fmt.Errorf("no file %q was made in %q", m.Name, m.In)
		}
	}
	for _, e := range []endpointRecord{r.From, r.To} {
		if !cleanPath(e.Point) || !cleanPath(e.Root) || e.Mount < 0 {
			return nil, fmt.Errorf("no mount is %d at %q", e.Mount, e.Point)
		}
	}
	return &r, nil
}

// cleanPath says whether p is an absolute path without anything to resolve.
func cleanPath(p []byte) bool {
	s := string(p)
	return strings.HasPrefix(s, "/") && filepath.Clean(s) == s && !strings.Contains(s, "\x00")
}

// record says what a run is about to do.
func (r *run) record() (*runRecord, error) {
	own, err := mounts.Own()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	endpoint := func(e Endpoint) endpointRecord {
		return endpointRecord{[]byte(e.Path), []byte(e.Mount.Point), own.Inode, e.Mount.ID, e.Mount.Dev, []byte(e.Mount.Root)}
	}
	rec := &runRecord{
		Version: journalVersion, PID: os.Getpid(), Began: r.began,
		From: endpoint(r.plan.From), To: endpoint(r.plan.To),
		Gate: r.options.GateShut, Move: r.options.Move,
	}
	for _, p := range r.plan.Usage.Processes {
		rec.Processes = append(rec.Processes, processRecord{p.PID, p.Start})
	}
	if !r.changesMounts() {
		return rec, nil
	}
	byNamespace := map[*mounts.Namespace][]*Mount{}
	for _, m := range r.plan.Usage.Mounts {
		byNamespace[m.Namespace] = append(byNamespace[m.Namespace], m)
	}
	for ns, list := range byNamespace {
		table, err := ns.Mounts()
		if err != nil {
			return nil, err
		}
		err = ns.Do(func(*os.File) error {
			for _, m := range list {
				note, err := noteMount(m, table)
				if err != nil {
					return err
				}
				rec.Mounts = append(rec.Mounts, note)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// noteMount notes what Recover needs of a mount; the calling thread is in its
// namespace.
func noteMount(m *Mount, table mounts.Table) (mountRecord, error) {
	note := mountRecord{
		ID: m.ID, Namespace: m.Namespace.Inode, Point: []byte(m.Point), Source: []byte(m.Info.Source), Root: []byte(m.Root),
		Shared: m.Info.Shared != 0, Parent: m.Info.Parent,
	}
	if parent := table.ByID(m.Info.Parent); parent != nil {
		note.Group = parent.Shared
	}
	root, err := mounts.Open(m.Info)
	if err != nil {
		return note, err
	}
	defer root.Close()
	note.Unique, err = mounts.UniqueID(root)
	return note, err
}

// noted says whether the record is about just those processes and mounts that
// the plan has now.
func (r *run) noted(rec *runRecord) bool {
	u := r.plan.Usage
	if len(rec.Processes) != len(u.Processes) {
		return false
	}
	for i, p := range u.Processes {
		if rec.Processes[i] != (processRecord{p.PID, p.Start}) {
			return false
		}
	}
	if !r.changesMounts() {
		return true
	}
	known := map[int]bool{}
	for _, m := range rec.Mounts {
		known[m.ID] = true
	}
	for _, m := range u.Mounts {
		if !known[m.ID] {
			return false
		}
	}
	return len(known) == len(u.Mounts)
}
