package swap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

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
}

func (k *knowledge) close() {
	if k.watch != nil {
		k.watch.Close()
	}
}

// find is Find. With the knowledge of a look before, it is the look at stopped
// processes: some that scope names may be gone, and our own is not looked at.
func find(ctx context.Context, dev uint64, scope Scope, k *knowledge) (*Usage, error) {
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
	members, err := scope.resolve(first)
	if err != nil {
		return nil, err
	}
	u := &Usage{Dev: dev}
	s, err := newScanner(u, k.watch.Spaces())
	if err != nil {
		return nil, err
	}
	defer s.owner.close()
	readings, err := s.readAll(ctx, k, first)
	if err != nil {
		return nil, err
	}
	newAssembly(u, s, members, k).add(readings)
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

// newScanner picks the mounts of the file system into u.
func newScanner(u *Usage, spaces []*mounts.Space) (*scanner, error) {
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
	if s.owner == nil {
		s.owner = newOwner(&mounts.Mount{})
	}
	for _, space := range spaces {
		u.Obstacles = append(u.Obstacles, s.mountObstacles(space.Table)...)
	}
	u.Obstacles = append(u.Obstacles, s.machineObstacles()...)
	return s, nil
}

// readAll reads every process of the machine. Unless self is set, our own is
// left out: during a swap it holds copies of what it swaps.
func (s *scanner) readAll(ctx context.Context, k *knowledge, self bool) ([]*reading, error) {
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
		visits = append(visits, &visit{pid: p.number, inode: p.inode, brief: k.hung[p.number] == p.inode})
	}
	c := &crew{ctx: ctx, visit: s.visit}
	c.run(visits)
	if k.kernel == nil {
		k.kernel = map[int]uint64{}
	}
	k.hung = map[int]uint64{}
	var readings []*reading
	for _, v := range visits {
		if v.stuck {
			k.hung[v.pid] = v.inode
		}
		r := v.reading
		switch {
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
			r.doubt("memory", "it can't be read: a task of the process holds its lock, likely while it waits for a file system", stuckRemedy)
			if !r.uses() {
				s.hidden = append(s.hidden, v.pid)
			}
		default:
			r.space.maps = v.memory.maps
			r.obstacles = append(r.obstacles, v.memory.obstacles...)
		}
		if r.uses() {
			s.readTracers(r)
		}
		readings = append(readings, r)
	}
	slices.SortFunc(readings, func(a, b *reading) int { return a.process.PID - b.process.PID })
	return readings, ctx.Err()
}

// visit reads one process.
func (s *scanner) visit(w *reader, v *visit) {
	var r *reading
	dir, err := openProcDir("/proc/" + strconv.Itoa(v.pid))
	if err != nil {
		err = errGone
	} else {
		defer dir.close()
		r, err = s.readFiles(w, dir, v.pid)
	}
	w.publish(v, func() { v.reading, v.err = r, err })
	if err != nil {
		return
	}
	process, task := r.process, r.space.task // r is another's from here on
	m, err := s.readMemory(w, dir, process, task)
	w.publish(v, func() { v.memory, v.err = m, err })
}

const stuckRemedy = "let the file system answer, or end the process"

// readTracers finds the tasks that somebody traces already.
func (s *scanner) readTracers(r *reading) {
	buf := make([]byte, 4096)
	dir, err := openProcDir("/proc/" + strconv.Itoa(r.process.PID) + "/task")
	if err != nil {
		return
	}
	defer dir.close()
	for _, tid := range r.process.Tasks {
		text, err := dir.record(strconv.Itoa(tid)+"/status", buf)
		if err != nil {
			continue
		}
		tracer, _, err := parseStatus(text)
		if err != nil {
			r.obstacle("thread "+strconv.Itoa(tid), err.Error(), "report this")
			continue
		}
		if tracer != 0 && !ownThread(tracer) {
			r.traced = append(r.traced, Task{r.process.PID, tid})
			r.tracer = tracer
		}
	}
}
