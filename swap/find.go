package swap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
	"spfs/internal/mounts"
)

// Find looks for everyone in scope who uses the file system whose st_dev is
// dev, on the whole machine and in every mount namespace. What can't be
// swapped, or can't be told, is in the Usage's Obstacles. The caller closes
// the Usage.
//
// It sends no request to the file system, and returns whatever state that is
// in: a process whose memory can't be read, because a task of it holds
// mmap_lock while it waits for the file system, is an Obstacle.
func Find(ctx context.Context, dev uint64, scope Scope) (*Usage, error) {
	k := &knowledge{}
	u, err := find(ctx, dev, scope, k)
	if err != nil {
		k.close()
		return nil, err
	}
	u.owned = k
	return u, nil
}

// knowledge is what one look leaves for the next, which so has less to do.
// Nothing in it is taken for granted that could have changed.
type knowledge struct {
	watch  *mounts.Watch
	kernel map[int]uint64 // kernel threads: the inodes of their directories in /proc
	hung   map[int]uint64 // processes that a reader got stuck in, likewise
	files  ranks[FDRef]
	tasks  map[int]ranks[int] // by what kcmp compared

	// With a reader, further looks ask the kernel who is to be looked at.
	reader  *fusestate.Reader
	members Members
	users   map[int]bool   // processes that used the file system when they were read last
	rest    map[int]*visit // and those that did not, but may have to do with it
	proven  map[int]proven
	hidden  []int // processes that could not be looked at

	steady  *steady        // nil if the look before can't be relied on
	stopped map[int]bool   // processes that were stopped before this look
	still   map[int]*visit // what was read of those that nobody can change

	left []*Mount // of the file system, detached: see [run.swapStragglers]
}

func (k *knowledge) close() {
	if k.watch != nil {
		k.watch.Close()
	}
}

// find is Find. With the knowledge of a look before, it is the look at stopped
// processes: some that scope names may be gone, and our own is not looked at.
func find(ctx context.Context, dev uint64, scope Scope, k *knowledge) (*Usage, error) {
	k.steady = nil
	first := k.watch == nil
	var err error
	if first {
		if err := checkRoot(); err != nil {
			return nil, err
		}
		k.watch, err = mounts.NewWatch(ctx)
	} else {
		err = k.watch.Refresh(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("mount namespaces: %w", err)
	}
	var before *kernelLook
	if k.reader != nil && !first {
		if before, err = look(k.reader, dev, slices.Collect(maps.Keys(k.users))); err != nil {
			return nil, fmt.Errorf("who uses the file system by the kernel's tables: %w", err)
		}
	}
	members, err := k.resolve(scope, before)
	if err != nil {
		return nil, err
	}
	u := &Usage{Dev: dev}
	s, err := newScanner(u, k.watch.Spaces(), k.left)
	if err != nil {
		return nil, err
	}
	defer s.owner.close()
	readings, err := s.readAll(ctx, k, first && k.left == nil, before)
	if err != nil {
		return nil, err
	}
	newAssembly(u, s, members, k).add(readings)
	k.forgetShared(u)
	u.addHidden(s.hidden, members)
	return u, nil
}

// ownThread says whether tid is a thread of ours: TracerPid is the tracing
// thread (fs/proc/array.c task_state), not its process.
func ownThread(tid int) bool {
	_, err := os.Lstat("/proc/self/task/" + strconv.Itoa(tid))
	return err == nil
}

// addHidden notes processes that can't be looked at: those that have a
// capability which we lack, or another security label (kernel/ptrace.c,
// __ptrace_may_access); and those of which a task holds a lock while it waits,
// for another file system perhaps (exec_update_lock in an exec, mmap_lock in a
// fault). Nothing of theirs could be swapped. One that the scope names is an
// obstacle; among everyone on the machine, they are listed only, or the init of
// a virtual machine, or a process that hangs elsewhere, would block every swap.
// Should one of them use the file system, it keeps the old one.
func (u *Usage) addHidden(pids []int, named Members) {
	slices.Sort(pids)
	u.Hidden = pids
	for _, pid := range pids {
		if named != nil && named.Has(pid) {
			u.Obstacles = append(u.Obstacles, Obstacle{
				PID: pid, Process: strconv.Itoa(pid), Resource: "process",
				Reason: "it can't be looked at: it has capabilities that we lack, or hangs in the kernel",
				Remedy: "run this with all capabilities, let what it waits for answer, or end it",
			})
		}
	}
}

// checkRoot makes sure that paths which the kernel prints for us start at the
// root of our mount namespace: d_path (fs/d_path.c) goes by the reader's root.
func checkRoot() error {
	own, err := mounts.Own()
	if err != nil {
		return err
	}
	defer own.Close()
	root := func(st *unix.Statx_t) error {
		return unix.Statx(unix.AT_FDCWD, "/", quiet, unix.STATX_INO|unix.STATX_MNT_ID, st)
	}
	var ours, namespaces unix.Statx_t
	if err := root(&ours); err != nil {
		return fmt.Errorf("statx /: %w", err)
	}
	if err := own.Do(func(*os.File) error { return root(&namespaces) }); err != nil {
		return err
	}
	if ours.Mnt_id != namespaces.Mnt_id || ours.Ino != namespaces.Ino {
		return errors.New("the root directory is not that of the mount namespace: run this outside the chroot")
	}
	return nil
}

// newScanner picks the mounts of the file system into u, and those that were left.
func newScanner(u *Usage, spaces []*mounts.Space, left []*Mount) (*scanner, error) {
	anon, err := anonymousDevice()
	if err != nil {
		return nil, err
	}
	s := &scanner{
		dev: u.Dev, anon: anon, prompt: true,
		mounts: map[int]*Mount{}, other: map[int]bool{}, internal: map[int]uint64{},
	}
	for _, space := range spaces {
		if space.Err != nil {
			// The namespace of a process that ended lives as long as we hold
			// it, so this is no race.
			u.Obstacles = append(u.Obstacles, Obstacle{
				Resource: space.Namespace.String(), Reason: space.Err.Error(), Remedy: "end its processes",
			})
		}
		for _, m := range space.Table {
			if m.Dev != u.Dev {
				s.other[m.ID] = true
				s.prompt = s.prompt && !asking[m.FSType]
				continue
			}
			mount := &Mount{ID: m.ID, Namespace: space.Namespace, Point: m.Point, Root: m.Root, Info: m}
			u.Mounts = append(u.Mounts, mount)
			s.mounts[m.ID] = mount
			if s.owner == nil {
				s.owner = newOwner(m)
			}
		}
	}
	for _, space := range spaces {
		u.Obstacles = append(u.Obstacles, s.mountObstacles(space.Table)...)
	}
	u.Obstacles = append(u.Obstacles, s.machineObstacles()...)
	for _, m := range left {
		if s.mounts[m.ID] != nil {
			continue
		}
		// Paths on what is mounted nowhere begin at its root (fs/d_path.c, prepend_path).
		mount := &Mount{ID: m.ID, Namespace: m.Namespace, Point: "/", Root: m.Root, Info: m.Info}
		u.Mounts = append(u.Mounts, mount)
		s.mounts[m.ID] = mount
		if s.owner == nil {
			s.owner = newOwner(m.Info)
		}
	}
	if s.owner == nil {
		s.owner = newOwner(&mounts.Mount{})
	}
	return s, nil
}

// readAll reads every process of the machine. Unless self is set, our own is
// left out: during a swap it holds copies of what it swaps.
// With a kernelLook, only those are read that it says may have to do with the
// file system.
func (s *scanner) readAll(ctx context.Context, k *knowledge, self bool, before *kernelLook) ([]*reading, error) {
	var visits []*visit
	var err error
	if s.some = before != nil; s.some {
		visits = k.visitsOf(before)
	} else if visits, err = k.visitsOfAll(self); err != nil {
		return nil, err
	}
	(&crew{ctx: ctx, visit: s.visit}).run(visits)
	s.readHung(ctx, visits)
	readings, err := s.settle(k, visits)
	if err != nil {
		return nil, err
	}
	if s.some && len(k.stopped) == 0 {
		after, err := look(k.reader, s.dev, slices.Collect(maps.Keys(k.users)))
		if err != nil {
			return nil, fmt.Errorf("who uses the file system by the kernel's tables: %w", err)
		}
		if !agree(visits, before, after) {
			k.reader = nil
			return readings, ctx.Err()
		}
		k.prove(visits, before, after)
		k.steady = &steady{after, seeMounts(k.watch.Spaces(), s.dev)}
	}
	return readings, ctx.Err()
}

// visitsOfAll makes the visits of a look at everybody.
func (k *knowledge) visitsOfAll(self bool) ([]*visit, error) {
	proc, err := openProcDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer proc.close()
	pids, err := proc.entries(".", make([]byte, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	var visits []*visit
	for _, p := range pids {
		if p.number == os.Getpid() && !self || k.kernel[p.number] == p.inode {
			continue
		}
		v := &visit{
			pid: p.number, inode: p.inode,
			brief: k.hung[p.number] == p.inode, stopped: k.stopped[p.number],
		}
		if old := k.still[p.number]; old != nil && old.inode == p.inode && v.stopped {
			v.before = old.reading
		}
		visits = append(visits, v)
	}
	return visits, nil
}

// settle collects what the visits brought. If they were not of all, the others
// have what they had.
func (s *scanner) settle(k *knowledge, visits []*visit) ([]*reading, error) {
	if k.kernel == nil {
		k.kernel = map[int]uint64{}
	}
	k.hung, k.still = map[int]uint64{}, map[int]*visit{}
	var readings []*reading
	if s.some {
		for _, v := range visits {
			delete(k.rest, v.pid)
		}
		for _, v := range k.rest {
			readings = append(readings, v.reading)
		}
		s.hidden = slices.Clone(k.hidden)
	} else {
		k.rest = map[int]*visit{}
	}
	k.users = map[int]bool{}
	for _, v := range visits {
		if v.stuck {
			k.hung[v.pid] = v.inode
		}
		r := v.reading
		switch {
		case v.stuck && r == nil && v.hung != nil:
			r = v.hung
		case v.stuck && r == nil, errors.Is(v.err, fs.ErrPermission):
			s.hidden = append(s.hidden, v.pid)
			continue
		case errors.Is(v.err, errKernel):
			k.kernel[v.pid] = v.inode
			continue
		case errors.Is(v.err, errGone):
			continue
		case v.err != nil:
			return nil, fmt.Errorf("process %d: %w", v.pid, v.err)
		case v.stuck:
			if r.uses() {
				r.obstacle("memory", "it can't be read: a task of the process holds its lock, likely while it waits for a file system", stuckRemedy)
				r.obstacles[len(r.obstacles)-1].hung = true
			} else {
				s.hidden = append(s.hidden, v.pid)
			}
		default:
			r.space.maps = v.memory.maps
			r.obstacles = append(r.obstacles, v.memory.obstacles...)
			r.traced, r.tracer = v.memory.traced, v.memory.tracer
			if v.stopped && len(r.obstacles) == 0 {
				k.still[v.pid] = v
			}
		}
		readings = append(readings, r)
		if r.uses() || len(r.obstacles) > 0 {
			k.users[v.pid] = true
		} else if r.kinds.any() {
			k.rest[v.pid] = v
		}
	}
	slices.SortFunc(readings, func(a, b *reading) int { return a.process.PID - b.process.PID })
	if !s.some {
		k.hidden = slices.Clone(s.hidden)
	}
	return readings, nil
}

// visit reads one process.
func (s *scanner) visit(w *reader, v *visit) {
	dir, err := openProcDir("/proc/" + strconv.Itoa(v.pid))
	if err != nil {
		w.publish(v, func() { v.err = errGone })
		return
	}
	defer dir.close()
	r, m := s.readAgain(w, dir, v.before, v.use)
	if r != nil {
		w.publish(v, func() { v.reading, v.memory = r, m })
		return
	}
	r, err = s.readFiles(w, dir, v.pid)
	w.publish(v, func() { v.reading, v.err = r, err })
	if err != nil {
		return
	}
	// r is another's from here on.
	process, task, uses := r.process, r.space.task, r.uses()
	m, err = s.readMemory(w, dir, process, task)
	if err == nil && !v.stopped && (uses || len(m.maps) > 0) {
		err = s.readTracers(w, dir, process, &m)
	}
	w.publish(v, func() { v.memory, v.err = m, err })
}

// readHung looks at the processes that could not be read at all. One that
// waits for another file system in the middle of an exec holds
// exec_update_lock, for which reading its stat, its maps and its links waits;
// but not its fdinfo (fs/proc/fd.c seq_show).
func (s *scanner) readHung(ctx context.Context, visits []*visit) {
	var hung, again []*visit
	for _, v := range visits {
		if v.stuck && v.reading == nil {
			hung = append(hung, v)
			again = append(again, &visit{pid: v.pid, brief: true})
		}
	}
	(&crew{ctx: ctx, visit: func(w *reader, v *visit) {
		r := s.readInfos(w, v.pid)
		w.publish(v, func() { v.hung = r })
	}}).run(again)
	for i, v := range again {
		hung[i].hung = v.hung
	}
}

// readInfos returns which descriptors of a process are on the file system, as
// obstacles, or nil if none is.
func (s *scanner) readInfos(w *reader, pid int) *reading {
	dir, err := openProcDir("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return nil
	}
	defer dir.close()
	name, err := dir.record("comm", w.small)
	if err != nil {
		return nil
	}
	r := &reading{process: &Process{PID: pid, Comm: string(bytes.TrimSuffix(name, []byte("\n"))), Tasks: []int{pid}}}
	fds, err := dir.numbers("fd", w.large)
	if err != nil {
		return nil
	}
	slices.Sort(fds)
	for _, fd := range fds {
		text, err := dir.record("fdinfo/"+strconv.Itoa(fd), w.small)
		if err != nil {
			continue
		}
		if info, err := parseFDInfo(text); err == nil && s.mounts[info.mount] != nil {
			r.obstacle("fd "+strconv.Itoa(fd), "the process hangs in the kernel, likely in an exec that waits for a file system", stuckRemedy)
		}
	}
	if len(r.obstacles) == 0 {
		return nil
	}
	return r
}

// readAgain returns what was read before of a process that has been stopped
// since, with that read anew which others can change; or nil, if all of it is
// to be read. With a use, it was stopped after it was read, and has the same.
func (s *scanner) readAgain(w *reader, dir procDir, before *reading, use *kernelUse) (*reading, memoryRead) {
	if before == nil {
		return nil, memoryRead{}
	}
	text, err := dir.record("stat", w.small)
	if err != nil {
		return nil, memoryRead{}
	}
	stat, err := parseStat(text)
	if err != nil || stat.gone() || use != nil && !before.sameTasks(dir, &stat, w) {
		return nil, memoryRead{}
	}
	// The mounts are other objects in each look.
	r := *before
	r.tables, r.contexts = slices.Clone(r.tables), slices.Clone(r.contexts)
	known := true
	mount := func(m **Mount) {
		*m = s.mounts[(*m).ID]
		known = known && *m != nil
	}
	for i := range r.tables {
		r.tables[i].fds = slices.Clone(r.tables[i].fds)
		for j, f := range r.tables[i].fds {
			fd := *f
			mount(&fd.mount)
			r.tables[i].fds[j] = &fd
		}
	}
	for i := range r.contexts {
		for _, place := range []**placeRead{&r.contexts[i].cwd, &r.contexts[i].root} {
			if *place != nil {
				p := **place
				mount(&p.mount)
				*place = &p
			}
		}
	}
	if r.exe != nil {
		exe := *r.exe
		mount(&exe.mount)
		r.exe = &exe
	}
	r.space.maps = slices.Clone(r.space.maps)
	for i := range r.space.maps {
		mount(&r.space.maps[i].mount)
	}
	if !known || use != nil && !r.update(use) {
		return nil, memoryRead{}
	}
	refs := r.kinds.refs
	r.kinds = kindsRead{}
	for _, ref := range refs {
		text, err := dir.record(ref.below()+"fdinfo/"+strconv.Itoa(ref.FD), w.small)
		if err != nil {
			return nil, memoryRead{}
		}
		info, err := parseFDInfo(text)
		if err != nil {
			return nil, memoryRead{}
		}
		s.readKind(&r.kinds, r.process, ref, &info)
	}
	return &r, memoryRead{maps: r.space.maps}
}

// forgetShared forgets the stopped processes that share something with one
// that is not.
func (k *knowledge) forgetShared(u *Usage) {
	check := func(pids func(yield func(int) bool)) {
		moving := false
		for pid := range pids {
			moving = moving || !k.stopped[pid]
		}
		if moving {
			for pid := range pids {
				delete(k.still, pid)
			}
		}
	}
	of := func(tasks []Task) func(yield func(int) bool) {
		return func(yield func(int) bool) {
			for _, t := range tasks {
				if !yield(t.PID) {
					return
				}
			}
		}
	}
	for _, t := range u.Tables {
		check(of(t.Tasks))
	}
	for _, c := range u.Contexts {
		check(of(c.Tasks))
	}
	for _, s := range u.Spaces {
		check(of(s.Tasks))
	}
	for _, d := range u.Descriptions {
		check(func(yield func(int) bool) {
			for _, r := range d.Refs {
				if !yield(r.PID) {
					return
				}
			}
		})
	}
}

const stuckRemedy = "let the file system answer, or end the process"

// readTracers finds the tasks that somebody else traces already.
func (s *scanner) readTracers(w *reader, dir procDir, p *Process, m *memoryRead) error {
	for _, tid := range p.Tasks {
		task := Task{p.PID, tid}
		text, err := dir.record(task.below()+"status", w.small)
		if err != nil {
			continue
		}
		tracer, _, err := parseStatus(text)
		if err != nil {
			return err
		}
		if tracer != 0 && !ownThread(tracer) {
			m.traced = append(m.traced, task)
			m.tracer = tracer
		}
	}
	return nil
}
