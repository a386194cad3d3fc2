package swap

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
	"spfs/internal/fault"
	"spfs/internal/mounts"
)

// unlinkedFile is a file of the old file system that has no name any more, and
// all that leads to it. It is made anew on the new file system: with the same
// content, owner, mode, times and extended attributes, by a name that nobody
// can guess and that is taken away before the verdict. On the way back nothing
// needs to be done: the file goes with its last description.
type unlinkedFile struct {
	task         Task
	mount        *Mount
	path         string
	attr         *attributes
	descriptions []*Description
	mappings     []*Mapping
	links        []string // that lead to it in /proc
	lost         bool     // nobody has its content
	other        *Mount   // another mount that it is reached through, if there is one
	name         string   // by which it is made
}

// madeName begins the names by which files are made anew.
const madeName = ".spfs-"

// newName is a name that nobody can guess.
func newName() string { return madeName + rand.Text() }

// ourName says whether newName may have made a name.
func ourName(name string) bool {
	rest, ours := strings.CutPrefix(name, madeName)
	return ours && len(rest) >= len(rand.Text()) && !strings.Contains(rest, "/")
}

// unlinkedFiles are those of u, each once. What they are is compared by the
// kernel's inodes: so that no two files ever become one.
func unlinkedFiles(u *Usage) ([]*unlinkedFile, error) {
	known := map[inodeID]*unlinkedFile{}
	var list []*unlinkedFile
	find := func(link string, task Task, mount *Mount, path string, attr *attributes) (*unlinkedFile, error) {
		id, err := inodeOf(link)
		if err != nil {
			if vanished(err) == nil {
				return nil, nil // whoever looks again sees what came of it
			}
			return nil, err
		}
		f := known[id]
		if f == nil {
			f = &unlinkedFile{task: task, mount: mount, path: path, attr: attr}
			known[id] = f
			list = append(list, f)
		}
		if mount != f.mount {
			f.other = mount
		}
		f.links = append(f.links, link)
		return f, nil
	}
	for _, d := range u.Descriptions {
		if !d.attr.unlinked {
			continue
		}
		f, err := find(d.Refs[0].link(), d.Refs[0].Task, d.Mount, d.Path, &d.attr)
		if err != nil {
			return nil, err
		}
		if f != nil {
			f.descriptions = append(f.descriptions, d)
		}
	}
	for _, s := range u.Spaces {
		for _, m := range s.Mappings {
			if !m.attr.unlinked {
				continue
			}
			f, err := find(m.link(s.Tasks[0].PID), s.Tasks[0], m.Mount, m.Path, &m.attr)
			if err != nil {
				return nil, err
			}
			if f != nil {
				f.mappings = append(f.mappings, m)
			}
		}
	}
	return list, nil
}

// resource is how obstacles name it.
func (f *unlinkedFile) resource() string {
	if len(f.descriptions) > 0 {
		return fmt.Sprintf("fd %d → %s", f.descriptions[0].Refs[0].FD, printable(f.path))
	}
	return fmt.Sprintf("mapping %x-%x → %s", f.mappings[0].Start, f.mappings[0].End, printable(f.path))
}

// unlinkedObstacles are unlinked files that can't be made anew, as far as can
// be told without asking the old file system.
func (p *Plan) unlinkedObstacles(u *Usage) ([]Obstacle, error) {
	files, err := unlinkedFiles(u)
	if err != nil {
		return nil, err
	}
	var list []Obstacle
	for _, f := range files {
		o := Obstacle{PID: f.task.PID, Process: processName(f.task.PID), Resource: f.resource()}
		switch {
		case p.Silent():
			o.Reason, o.Remedy = "it is unlinked, and only the daemon of --from, which is silent, has its content", lossRemedy+", for zeros in its place"
			o.Loss = true
		case f.other != nil:
			o.Reason, o.Remedy = "it is unlinked, and open through two mount points", "close one"
		default:
			continue
		}
		list = append(list, o)
	}
	return list, nil
}

// askUnlinked asks the old file system whether the unlinked files have names
// that the kernel does not know. It is for a plan that may ask.
func (p *Plan) askUnlinked(ctx context.Context) error {
	files, err := unlinkedFiles(p.Usage)
	if err != nil || len(files) == 0 {
		return err
	}
	var list []Obstacle // whoever is not waited for has it for itself
	err = within(ctx, "asking the old mount about unlinked files", func() error {
		for _, f := range files {
			if err := f.nameless(); err != nil && vanished(err) != nil {
				list = append(list, Obstacle{
					PID: f.task.PID, Process: processName(f.task.PID), Resource: f.resource(),
					Reason: "it is unlinked, and " + err.Error(), Remedy: "close it",
				})
			}
		}
		return nil
	})
	if err == nil {
		p.Obstacles = append(p.Obstacles, list...)
	}
	return err
}

// nameless makes sure that f has no name left: who opened another hard link
// would not see any more what is written to it. A daemon of libfuse's, which
// renames what is unlinked and open (.fuse_hidden…), does not count that name.
func (f *unlinkedFile) nameless() error {
	old, err := os.OpenFile(f.links[0], unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer old.Close()
	st, err := statNew(old)
	if err != nil || st.Nlink == 0 {
		// A daemon that works with names can't tell of what has none.
		return nil
	}
	return fmt.Errorf("has %d other names (hard links), which nobody tells", st.Nlink)
}

// recreate makes all unlinked files anew.
func (r *run) recreate(ctx context.Context) error {
	files, err := unlinkedFiles(r.plan.Usage)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return nil
	}
	if err := r.noteMade(files); err != nil {
		return err
	}
	for _, f := range files {
		f.lost = r.plan.Silent()
		type result struct {
			made []*os.File
			err  error
		}
		done := make(chan result, 1)
		go func() {
			made, err := f.makeAnew(ctx)
			if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
				// A file system that admits only some users.
				ownErr := doAs(f.task, func() error {
					own, err := f.makeAnew(ctx)
					made = append(made, own...)
					return err
				})
				if ownErr == nil {
					err = nil
				}
			}
			done <- result{made, err}
		}()
		var got result
		select {
		case got = <-done:
		case <-ctx.Done():
			// It gives up by itself, and takes the name away, unless it hangs.
			select {
			case got = <-done:
			case <-time.After(patience):
				return fmt.Errorf("copying unlinked files: a daemon does not answer: %w", ctx.Err())
			}
		}
		r.made = append(r.made, got.made...)
		if got.err != nil {
			return fmt.Errorf("process %s: %s is unlinked: making it anew: %w", processName(f.task.PID), f.resource(), got.err)
		}
	}
	return nil
}

// noteMade notes in the journal by what names files will be there until the
// verdict, for Recover to take them away.
func (r *run) noteMade(files []*unlinkedFile) error {
	rec := *r.journal.written
	for _, f := range files {
		f.name = newName()
		made := madeRecord{Name: []byte(f.name)}
		for _, dir := range []string{path.Dir(f.path), f.mount.Root} {
			if in, ok := relative(dir, r.plan.From.Mount.Root); ok {
				made.In = append(made.In, []byte(path.Join("/", in)))
			}
		}
		if len(made.In) > 0 { // else it won't be made either
			rec.Made = append(rec.Made, made)
		}
	}
	return r.journal.write(&rec)
}

// makeAnew makes f on the new file system, and opens it for all that leads to
// it. What it opened is returned also if it fails.
func (f *unlinkedFile) makeAnew(ctx context.Context) (made []*os.File, err error) {
	if f.other != nil {
		return nil, errors.New("it is open through two mount points")
	}
	if !f.lost {
		if err := f.nameless(); err != nil {
			return nil, err
		}
	}
	source, err := f.source()
	if err != nil {
		return nil, err
	}
	defer source.Close()
	st, err := statNew(source)
	if err != nil || f.lost {
		st = f.attr.Statx_t
	}
	place, err := f.directory()
	if err != nil {
		return nil, err
	}
	defer place.Close()
	fd, err := unix.Openat(int(place.Fd()), f.name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a file in %s: %w", place.Name(), err)
	}
	file := os.NewFile(uintptr(fd), place.Name()+"/"+f.name)
	defer file.Close()
	fault.Point("unlinked file created")
	named := true
	unlink := func() error {
		named = false
		if err := unix.Unlinkat(int(place.Fd()), f.name, 0); err != nil {
			return fmt.Errorf("unlink %s: %w", file.Name(), err)
		}
		return nil
	}
	defer func() {
		if named {
			err = errors.Join(err, unlink())
		}
	}()
	// While it has a name: a daemon that works with names can't open it after.
	if made, err = f.openAll(place, f.name, file); err != nil {
		return made, err
	}
	if err := copyFile(ctx, file, source, &st); err != nil {
		return made, err
	}
	fault.Point("unlinked file copied")
	return made, unlink()
}

// source opens f to be read, by itself if the daemon can still do that: a copy
// of a description reads as well, if that may be read from.
func (f *unlinkedFile) source() (*os.File, error) {
	if f.lost {
		return zeros(int64(f.attr.Size))
	}
	fd, err := eintr.Get(func() (int, error) { return unix.Open(f.links[0], unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err == nil {
		return os.NewFile(uintptr(fd), f.path), nil
	}
	for _, d := range f.descriptions {
		if d.Flags&unix.O_PATH != 0 || !d.reads() {
			continue
		}
		if fd, err := takeFD(d.Refs[0]); err == nil {
			return os.NewFile(uintptr(fd), f.path), nil
		}
	}
	return nil, fmt.Errorf("opening it for reading: %w", err)
}

// directory is where f is made: where it was, or, should that be gone too, at
// the root of its mount.
func (f *unlinkedFile) directory() (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	rest, ok := relative(path.Dir(f.path), f.mount.Root)
	if !ok {
		return nil, errElsewhere
	}
	if rest = strings.TrimPrefix(rest, "/"); rest != "" {
		dir, err := mounts.OpenBeneath(f.mount.Replacement, rest, flags)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return dir, err
		}
	}
	return mounts.OpenBeneath(f.mount.Replacement, ".", flags)
}

// openAll opens file, which has the name in place, for all that leads to f.
func (f *unlinkedFile) openAll(place *os.File, name string, file *os.File) (made []*os.File, err error) {
	open := func(flags int) (again *os.File, err error) {
		if flags&unix.O_NOFOLLOW != 0 {
			again, err = openNoFollow(place, name, file, flags)
		} else {
			again, err = reopen(file, flags)
		}
		if err == nil {
			made = append(made, again)
		}
		return again, err
	}
	for _, d := range f.descriptions {
		if d.Replacement, err = open(openFlags(d.Flags)); err != nil {
			return made, err
		}
	}
	for _, m := range f.mappings {
		flags := unix.O_RDONLY
		if m.MayWrite {
			flags = unix.O_RDWR
		}
		if m.Replacement, err = open(flags); err != nil {
			return made, err
		}
	}
	return made, nil
}

// copyFile makes to what from is, content first: what is written takes away
// set-user-ID bits, and sets the time.
func copyFile(ctx context.Context, to, from *os.File, st *unix.Statx_t) error {
	fd := int(to.Fd())
	if err := copyContent(ctx, to, from, int64(st.Size)); err != nil {
		return err
	}
	is, err := statNew(to)
	if err != nil {
		return fmt.Errorf("stat %s: %w", to.Name(), err)
	}
	if is.Size != st.Size {
		return fmt.Errorf("%s is %d bytes, not %d, after they were written", to.Name(), is.Size, st.Size)
	}
	if is.Uid != st.Uid || is.Gid != st.Gid {
		if err := eintr.Retry(func() error { return unix.Fchown(fd, int(st.Uid), int(st.Gid)) }); err != nil {
			return fmt.Errorf("giving it to user %d and group %d: %w", st.Uid, st.Gid, err)
		}
	}
	if err := copyAttributes(to, from); err != nil {
		return err
	}
	if err := eintr.Retry(func() error { return unix.Fchmod(fd, uint32(st.Mode)&0o7777) }); err != nil {
		return fmt.Errorf("giving it the mode %#o: %w", st.Mode&0o7777, err)
	}
	times := []unix.Timespec{
		{Sec: st.Atime.Sec, Nsec: int64(st.Atime.Nsec)},
		{Sec: st.Mtime.Sec, Nsec: int64(st.Mtime.Nsec)},
	}
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := eintr.Retry(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, link, times, 0) }); err != nil {
		return fmt.Errorf("setting its times: %w", err)
	}
	return nil
}

// copyContent copies size bytes. What is zero is left out, so that holes stay.
func copyContent(ctx context.Context, to, from *os.File, size int64) error {
	if err := to.Truncate(size); err != nil {
		return fmt.Errorf("making it %d bytes long: %w", size, err)
	}
	const block = 4096
	buf := make([]byte, 256<<10)
	zero := make([]byte, block)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		// pread: the position may be the process's own.
		n, err := eintr.Get(func() (int, error) { return unix.Pread(int(from.Fd()), buf[:min(int64(len(buf)), size-at)], at) })
		if err != nil {
			return fmt.Errorf("reading at %d: %w", at, err)
		}
		if n == 0 {
			return fmt.Errorf("it ends at %d of %d bytes", at, size)
		}
		for done := 0; done < n; {
			b := buf[done:min(n, done+block)]
			if !bytes.Equal(b, zero[:len(b)]) {
				// os.File writes all or fails.
				if _, err := to.WriteAt(b, at+int64(done)); err != nil {
					return fmt.Errorf("writing at %d: %w", at+int64(done), err)
				}
			}
			done += len(b)
		}
		at += int64(n)
	}
	return nil
}

// maxXattrs bounds what is read of one extended attribute, or of their names
// (include/uapi/linux/limits.h XATTR_SIZE_MAX, XATTR_LIST_MAX).
const maxXattrs = 64 << 10

// copyAttributes copies extended attributes, access lists and file capabilities
// among them. A file system without any has none to copy.
func copyAttributes(to, from *os.File) error {
	names := make([]byte, maxXattrs)
	n, err := eintr.Get(func() (int, error) { return unix.Flistxattr(int(from.Fd()), names) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing its extended attributes: %w", err)
	}
	value := make([]byte, maxXattrs)
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := eintr.Get(func() (int, error) { return unix.Fgetxattr(int(from.Fd()), name, value) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the extended attribute %s: %w", printable(name), err)
		}
		if err := eintr.Retry(func() error { return unix.Fsetxattr(int(to.Fd()), name, value[:n], 0) }); err != nil {
			return fmt.Errorf("setting the extended attribute %s: %w", printable(name), err)
		}
	}
	return nil
}
