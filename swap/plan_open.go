package swap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/mounts"
)

// opener opens replacements and keeps them from one Refresh to the next.
type opener struct {
	plan      *Plan
	to        *os.File // O_PATH: the root of the new mount
	clones    map[int]*os.File
	files     map[fileWant][]*replacement
	obstacles []Obstacle
	written   map[uint64]bool // inodes that somebody may write to
	final     bool            // everybody is stopped

	jobsBefore []*opening // of the fill before
}

// fileWant is what a replacement must fit.
type fileWant struct {
	mount int
	path  string
	ino   uint64
	kind  uint32 // S_IFMT
	flags int
	owner int // first task of the address space, for mappings; -1 for directories; 0 for descriptions
}

// replacement is an open file of the new file system.
type replacement struct {
	file   *os.File
	used   bool
	size   int64 // of the old file when the two were compared; -1 before
	pos    int64 // position of the old directory that newPos is for
	newPos int64
	posSet bool
	placed placed
}

// placed is what the position and the flags of a file were set to.
type placed struct {
	file  *os.File // nil if none were
	pos   int64
	flags int
}

func newOpener(p *Plan) (*opener, error) {
	to, err := mounts.Open(p.To.Mount)
	if err != nil {
		return nil, fmt.Errorf("--to %s: %w", p.To.Path, err)
	}
	return &opener{plan: p, to: to, clones: map[int]*os.File{}, files: map[fileWant][]*replacement{}}, nil
}

func (o *opener) close() {
	o.to.Close()
	for _, c := range o.clones {
		c.Close()
	}
	for _, list := range o.files {
		for _, r := range list {
			r.file.Close()
		}
	}
	o.clones, o.files = nil, nil
}

// opening is one replacement to find or to open.
type opening struct {
	want      fileWant
	attr      *attributes
	task      Task // on whose behalf
	resource  string
	mount     *Mount
	pos       int64
	readsDir  bool
	compares  bool
	ref       FDRef // a descriptor of the old file, if it has one
	got       *replacement
	obstacles []Obstacle
	done      func(*replacement)

	description *Description // what ref is of
}

// fill gives every object of usage its replacement.
func (o *opener) fill(ctx context.Context, usage *Usage) error {
	o.obstacles = nil
	o.written = map[uint64]bool{}
	for _, d := range usage.Descriptions {
		if d.writes() {
			o.written[d.Ino] = true
		}
	}
	for _, s := range usage.Spaces {
		for _, m := range s.Mappings {
			if m.writes() {
				o.written[m.Ino] = true
			}
		}
	}
	blocked := map[int]bool{} // mounts without a clone: said once, not per file
	for _, m := range usage.Mounts {
		if err := o.clone(m); err != nil {
			blocked[m.ID] = true
			o.obstacles = append(o.obstacles, Obstacle{
				Resource: "mount " + printable(m.Point) + " in " + m.Namespace.String(),
				Reason:   reason(err), Remedy: mountRemedy(err),
			})
		}
	}
	for _, list := range o.files {
		for _, r := range list {
			r.used = false
		}
	}
	o.jobsBefore = nil
	var jobs, open []*opening
	for _, j := range o.jobs(usage) {
		if j.attr.unlinked || blocked[j.mount.ID] {
			continue // made when all is stopped, or an obstacle already
		}
		jobs = append(jobs, j)
		if j.got = o.reuse(j.want); j.got == nil {
			open = append(open, j)
		}
	}
	o.sweep(usage)
	if o.final {
		if err := o.plan.forgetNames(ctx); err != nil {
			return err
		}
	}
	if err := each(ctx, open, o.open); err != nil {
		return err
	}
	for _, j := range open {
		if j.got != nil {
			j.got.used = true
			o.files[j.want] = append(o.files[j.want], j.got)
		}
	}
	if err := each(ctx, jobs, o.check); err != nil {
		return err
	}
	for _, j := range jobs {
		o.obstacles = append(o.obstacles, j.obstacles...)
		if j.got != nil {
			j.done(j.got)
		}
	}
	o.jobsBefore = jobs
	return nil
}

// each calls do for all jobs, on as many processors as there are.
func each(ctx context.Context, jobs []*opening, do func(*opening)) error {
	if len(jobs) == 0 {
		return ctx.Err()
	}
	var g errgroup.Group
	n := min(2*runtime.GOMAXPROCS(0), len(jobs))
	for k := range n {
		g.Go(func() error {
			for i := k; i < len(jobs) && ctx.Err() == nil; i += n {
				do(jobs[i])
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// clone gives m its Replacement.
func (o *opener) clone(m *Mount) error {
	if m.Replacement = o.clones[m.ID]; m.Replacement != nil {
		return nil
	}
	if !o.plan.Scope.Everyone() {
		// The mount point stays as it is, and a clone would be a mount that
		// nobody finds: those who are swapped get their files through --to.
		rest, ok := relative(m.Root, o.plan.From.Mount.Root)
		if !ok {
			return errElsewhere
		}
		return o.part(m, strings.TrimPrefix(rest, "/"))
	}
	if err := replaceable(m); err != nil {
		return err
	}
	c, err := cloneFor(m.Info, o.to, o.plan.From.Mount.Root)
	if err != nil {
		return err
	}
	m.Replacement = c
	o.clones[m.ID] = c
	return nil
}

// cloneFor makes the mount that is to stand in the place of old: the same part
// of what to is the root of, as old is of what from shows, with old's options.
func cloneFor(old *mounts.Mount, to *os.File, from string) (*os.File, error) {
	rest, ok := relative(old.Root, from)
	if !ok {
		return nil, errElsewhere
	}
	c, err := mounts.Clone(to, strings.TrimPrefix(rest, "/"))
	if err != nil {
		return nil, err
	}
	if err := mounts.SetOptions(c, old.Options); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// errLocked is a reason for an Obstacle, not a failure.
var errLocked = errors.New("it is locked there: the namespace belongs to a user namespace that came by the mount when it was made, and may not lose it")

// replaceable says why m could not be taken off its mount point, if so. A walk
// there may hang in other file systems, so it is not waited for long.
func replaceable(m *Mount) error {
	type answer struct {
		locked bool
		err    error
	}
	asked := make(chan answer, 1)
	// The namespace may be let go before the answer comes.
	file, err := unix.FcntlInt(m.Namespace.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold %v: %w", m.Namespace, err)
	}
	ns := &mounts.Namespace{Inode: m.Namespace.Inode, File: os.NewFile(uintptr(file), m.Namespace.String())}
	go func() {
		defer ns.Close()
		locked, err := ns.Locked(m.Info)
		asked <- answer{locked, err}
	}()
	select {
	case a := <-asked:
		if a.locked {
			return errLocked
		}
		return a.err
	case <-time.After(patience):
		return errors.New("the way to the mount point leads through a file system that hangs")
	}
}

func mountRemedy(err error) string {
	switch {
	case errors.Is(err, errLocked):
		return "end the processes of that namespace, or name those to be swapped"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errElsewhere):
		return "make it on --to, or unmount it"
	}
	return "unmount it"
}

// part gives m the place in the new mount itself that it shows.
func (o *opener) part(m *Mount, rest string) error {
	at := rest
	if at == "" {
		at = "."
	}
	part, err := mounts.OpenBeneath(o.to, at, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	m.Replacement = part
	o.clones[m.ID] = part
	return nil
}

// openFlags are the flags of a description that open(2) takes again. Those
// that only act when a file is opened are left out.
func openFlags(flags int) int {
	return flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_NOCTTY | unix.O_CLOEXEC)
}

// jobs lists what usage needs.
func (o *opener) jobs(usage *Usage) []*opening {
	var jobs []*opening
	for _, d := range usage.Descriptions {
		flags := openFlags(d.Flags)
		if d.isFIFO() {
			// It is found for now, and opened when all is stopped.
			flags = unix.O_PATH | flags&unix.O_NOFOLLOW
		} else if specialKind(d.Type) != "" && d.Flags&unix.O_PATH == 0 {
			continue // an obstacle already, and opening one may block or act
		}
		path := d.Flags&unix.O_PATH != 0
		jobs = append(jobs, &opening{
			want: fileWant{d.Mount.ID, d.Path, d.Ino, d.Type, flags, 0},
			attr: &d.attr, task: d.Refs[0].Task, mount: d.Mount, ref: d.Refs[0], description: d,
			resource: fmt.Sprintf("fd %d → %s", d.Refs[0].FD, printable(d.Path)),
			compares: d.Type == unix.S_IFREG && !path,
			pos:      d.Pos, readsDir: d.Type == unix.S_IFDIR && !path,
			done: func(r *replacement) {
				d.Replacement, d.placed = r.file, &r.placed
				if r.posSet {
					d.NewPos = r.newPos
				}
			},
		})
	}
	for _, c := range usage.Contexts {
		for what, d := range map[string]*Directory{"cwd": c.Cwd, "root": c.Root} {
			if d == nil {
				continue
			}
			jobs = append(jobs, &opening{
				want: fileWant{d.Mount.ID, d.Path, d.Ino, unix.S_IFDIR, unix.O_PATH | unix.O_DIRECTORY, -1},
				attr: &d.attr, task: c.Tasks[0], mount: d.Mount, resource: what + " " + printable(d.Path),
				done: func(r *replacement) { d.Replacement = r.file },
			})
		}
	}
	for _, s := range usage.Spaces {
		jobs = append(jobs, mappingJobs(s)...)
		if s.Exe != nil {
			jobs = append(jobs, exeJob(s))
		}
	}
	return append(jobs, o.watchJobs(usage)...)
}

// mappingJobs makes one job for all mappings of one file in an address space.
func mappingJobs(s *AddressSpace) []*opening {
	var jobs []*opening
	groups := map[fileWant][]*Mapping{}
	for _, m := range s.Mappings {
		key := fileWant{m.Mount.ID, m.Path, m.Ino, unix.S_IFREG, unix.O_RDONLY, s.Tasks[0].TID}
		groups[key] = append(groups[key], m)
	}
	for key, group := range groups {
		for _, m := range group {
			if m.MayWrite {
				key.flags = unix.O_RDWR
			}
		}
		first := group[0]
		jobs = append(jobs, &opening{
			want: key, attr: &first.attr, task: s.Tasks[0], mount: first.Mount, compares: true,
			resource: fmt.Sprintf("mapping %x-%x → %s", first.Start, first.End, printable(first.Path)),
			done: func(r *replacement) {
				for _, m := range group {
					m.Replacement = r.file
				}
			},
		})
	}
	return jobs
}

// reuse takes a replacement that fits and that nobody else has taken.
// Directories may share one.
func (o *opener) reuse(want fileWant) *replacement {
	for _, r := range o.files[want] {
		if !r.used || want.owner == -1 {
			r.used = true
			return r
		}
	}
	return nil
}

// sweep closes what nobody uses any more.
func (o *opener) sweep(usage *Usage) {
	for want, list := range o.files {
		kept := list[:0]
		for _, r := range list {
			if r.used {
				kept = append(kept, r)
			} else {
				r.file.Close()
			}
		}
		if o.files[want] = kept; len(kept) == 0 {
			delete(o.files, want)
		}
	}
	live := map[int]bool{}
	for _, m := range usage.Mounts {
		live[m.ID] = true
	}
	for id, c := range o.clones {
		if !live[id] {
			c.Close()
			delete(o.clones, id)
		}
	}
}

// open opens j's replacement, or says what is in the way.
func (o *opener) open(j *opening) {
	f, err := o.openAt(j, j.want.path)
	if err != nil && j.attr.ambiguous && errors.Is(err, fs.ErrNotExist) {
		j.refuse("the kernel calls it deleted, and no file of that very name is on --to", "close it")
		return
	}
	if err != nil {
		j.refuse(reason(err), remedy(err))
		return
	}
	j.got = &replacement{file: f, size: -1}
}

// openAt opens path, from the file system's root, through the clone for j's
// mount.
func (o *opener) openAt(j *opening, path string) (*os.File, error) {
	rest, ok := relative(path, j.mount.Root)
	if !ok {
		return nil, errElsewhere
	}
	open := func() (*os.File, error) { return openThrough(j.mount.Replacement, rest, j.want) }
	f, err := open()
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		// A file system that admits only some users: be the one whose file it
		// is. O_NOATIME, too, is for a file's owner only.
		if f, ownErr := openAs(j.task, open); ownErr == nil {
			return f, nil
		}
	}
	return f, err
}

// openThrough opens what rest names below a clone's root and sees to it that
// it is of the right type before it is opened for more than its path: opening
// a FIFO may block, opening a device may act.
func openThrough(clone *os.File, rest string, want fileWant) (*os.File, error) {
	rest = strings.TrimPrefix(rest, "/")
	var path *os.File
	var err error
	if rest == "" {
		path = clone
	} else {
		if path, err = mounts.OpenBeneath(clone, rest, unix.O_PATH|unix.O_NOFOLLOW); err != nil {
			return nil, err
		}
		defer path.Close()
	}
	var st unix.Statx_t
	err = eintr.Retry(func() error { return unix.Statx(int(path.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st) })
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", path.Name(), err)
	}
	if got := uint32(st.Mode) & unix.S_IFMT; got != want.kind {
		return nil, &typeError{want.kind, got}
	}
	if want.flags&unix.O_NOFOLLOW != 0 {
		return openNoFollow(clone, rest, path, want.flags)
	}
	return reopen(path, want.flags)
}

// openNoFollow opens rest again with O_NOFOLLOW, which F_GETFL shows for good
// and which the way through a magic link does not take. It must still be path.
func openNoFollow(clone *os.File, rest string, path *os.File, flags int) (*os.File, error) {
	if rest == "" {
		return reopen(path, flags)
	}
	safe := flags
	if flags&unix.O_PATH == 0 {
		safe |= unix.O_NONBLOCK // should a FIFO have come there since
	}
	f, err := mounts.OpenBeneath(clone, rest, safe)
	if err != nil {
		return nil, err
	}
	var was, is unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_INO
	err = errors.Join(unix.Statx(int(path.Fd()), "", unix.AT_EMPTY_PATH|quiet, mask, &was),
		unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|quiet, mask, &is))
	if err == nil && (was.Ino != is.Ino || was.Mode != is.Mode) {
		err = fmt.Errorf("open %s: it was exchanged meanwhile", path.Name())
	}
	if err == nil && safe != flags {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reopen opens what path is open on once more. The link leads to the very file
// that was looked at, whatever its name has become.
func reopen(path *os.File, flags int) (*os.File, error) {
	link := "/proc/self/fd/" + strconv.Itoa(int(path.Fd()))
	fd, err := eintr.Get(func() (int, error) { return unix.Open(link, flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path.Name(), err)
	}
	return os.NewFile(uintptr(fd), path.Name()), nil
}

// typeError says that a file is of another type than it was.
type typeError struct{ want, got uint32 }

func (e *typeError) Error() string {
	return fmt.Sprintf("is %s here, %s on --to", typeName(e.want), typeName(e.got))
}

func typeName(mode uint32) string {
	switch mode {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFDIR:
		return "a directory"
	}
	if kind := specialKind(mode); mode != unix.S_IFIFO {
		return kind
	}
	return "a FIFO"
}

// reason is what an error of opening a replacement means to the user.
func reason(err error) string {
	var kind *typeError
	switch {
	case errors.As(err, &kind):
		return kind.Error()
	case errors.Is(err, fs.ErrNotExist):
		return "missing on --to"
	case errors.Is(err, unix.ELOOP):
		return "a part of its path is a symlink on --to"
	}
	return err.Error()
}

func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP):
		return "put it there, or close it"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "let root or the process's user open it"
	}
	return "make them the same, or close it"
}

func (j *opening) refuse(reason, remedy string) {
	j.obstacles = append(j.obstacles, Obstacle{
		PID: j.task.PID, Process: processName(j.task.PID), Resource: j.resource, Reason: reason, Remedy: remedy,
	})
}

// processName is a process as obstacles name it.
func processName(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return strconv.Itoa(pid)
	}
	return fmt.Sprintf("%d (%s)", pid, strings.TrimSuffix(string(text), "\n"))
}
