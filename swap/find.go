package swap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"

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
	return find(ctx, dev, scope, true)
}

// find is Find; unless strict, it is the look at stopped processes: some that
// scope names may be gone, and our own is not looked at.
func find(ctx context.Context, dev uint64, scope Scope, strict bool) (*Usage, error) {
	if err := checkRoot(); err != nil {
		return nil, err
	}
	members, err := scope.resolve(strict)
	if err != nil {
		return nil, err
	}
	u := &Usage{Dev: dev}
	s, err := newScanner(ctx, u)
	if err != nil {
		return nil, err
	}
	defer s.owner.close()
	readings, err := s.readAll(ctx, strict)
	if err != nil {
		u.Close()
		return nil, err
	}
	newAssembly(u, s, members).add(readings)
	u.addHidden(s.hidden, members)
	return u, nil
}

// ownThread says whether tid is a thread of ours: TracerPid is the tracing
// thread (fs/proc/array.c task_state), not its process.
func ownThread(tid int) bool {
	_, err := os.Lstat("/proc/self/task/" + strconv.Itoa(tid))
	return err == nil
}

// hide notes a process that can't be looked at.
func (s *scanner) hide(pid int) {
	s.mu.Lock()
	s.hidden = append(s.hidden, pid)
	s.mu.Unlock()
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

// newScanner lists the mounts of the file system into u.
func newScanner(ctx context.Context, u *Usage) (*scanner, error) {
	s := &scanner{dev: u.Dev, mounts: map[int]*Mount{}, other: map[int]bool{}, internal: map[int]uint64{}}
	namespaces, err := mounts.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("mount namespaces: %w", err)
	}
	var tables []mounts.Table
	for _, ns := range namespaces {
		table, err := ns.Mounts()
		if err != nil {
			// The namespaces of a process that ended live as long as we hold
			// them, so this is no race.
			u.Obstacles = append(u.Obstacles, Obstacle{
				Resource: ns.String(), Reason: err.Error(), Remedy: "end its processes",
			})
		}
		tables = append(tables, table)
		used := false
		for _, m := range table {
			if m.Dev != u.Dev {
				s.other[m.ID] = true
				continue
			}
			mount := &Mount{ID: m.ID, Namespace: ns, Point: m.Point, Root: m.Root, Info: m}
			u.Mounts = append(u.Mounts, mount)
			s.mounts[m.ID] = mount
			used = true
			if s.owner == nil {
				s.owner = newOwner(m)
			}
		}
		if !used {
			ns.Close()
		}
	}
	if s.owner == nil {
		s.owner = &owner{calls: make(chan func())}
	}
	for _, table := range tables {
		u.Obstacles = append(u.Obstacles, s.mountObstacles(table)...)
	}
	u.Obstacles = append(u.Obstacles, s.machineObstacles()...)
	return s, nil
}

// readAll reads every process of the machine. Unless self is set, our own is
// left out: during a swap it holds copies of what it swaps.
func (s *scanner) readAll(ctx context.Context, self bool) ([]*reading, error) {
	proc, err := openProcDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer proc.close()
	pids, err := proc.numbers(".")
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	var (
		mu       sync.Mutex
		readings []*reading
		failure  error
		wait     sync.WaitGroup
		b        = newBouncer()
	)
	for _, pid := range pids {
		if pid == os.Getpid() && !self {
			continue
		}
		wait.Add(1)
		b.enter()
		go func() {
			defer wait.Done()
			r, err := s.readProcess(ctx, b, pid)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errGone):
			case errors.Is(err, fs.ErrPermission):
				s.hide(pid)
			case err != nil && failure == nil:
				failure = fmt.Errorf("process %d: %w", pid, err)
			}
			if r != nil {
				readings = append(readings, r)
			}
		}()
	}
	wait.Wait()
	if failure == nil {
		failure = ctx.Err()
	}
	slices.SortFunc(readings, func(a, b *reading) int { return a.process.PID - b.process.PID })
	return readings, failure
}

// readProcess reads one process. It leaves b.
func (s *scanner) readProcess(ctx context.Context, b *bouncer, pid int) (*reading, error) {
	type result struct {
		files  *reading
		memory memoryRead
		err    error
	}
	files := make(chan result, 1)
	mem := make(chan result, 1)
	w := b.watch(func() {
		r, err := s.readFiles(pid)
		if err != nil {
			files <- result{err: err}
			return
		}
		process, task := r.process, r.space.task
		files <- result{files: r}
		m, err := s.readMemory(process, task)
		mem <- result{memory: m, err: err}
	})
	var r *reading
	select {
	case got := <-files:
		if got.err != nil {
			w.end()
			return nil, got.err
		}
		r = got.files
	case <-w.stuck(ctx):
		s.hide(pid)
		return nil, nil
	}
	select {
	case got := <-mem:
		w.end()
		if got.err != nil {
			return nil, got.err
		}
		r.space.maps = got.memory.maps
		r.obstacles = append(r.obstacles, got.memory.obstacles...)
	case <-w.stuck(ctx):
		r.doubt("memory", "it can't be read: a task of the process holds its lock, likely while it waits for a file system", stuckRemedy)
		if !r.uses() {
			s.hide(pid)
		}
	}
	if r.uses() {
		s.readTracers(r)
	}
	return r, nil
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
