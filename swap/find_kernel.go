package swap

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
)

// kernelLook is who uses the file system by the kernel's own tables, at one
// moment. With it a look at stopped processes need not read all of /proc, nor
// what it has read before and nobody has changed.
type kernelLook struct {
	uses map[int]*kernelUse
	conn *fusestate.Conn // nil if nobody has anything of it
}

// kernelUse is what a process has of the file system.
type kernelUse struct {
	files    []fusestate.File
	mappings []fusestate.Mapping
	places   []fusestate.Place
	device   bool             // it has the file system's /dev/fuse
	others   fusestate.Others // sockets, epolls and the like
	counted  bool             // others is known
	busy     bool             // mappings are not all there
}

// others are the processes that have anything of dev and are not among pids.
func others(s *fusestate.State, dev uint64, pids []int) []int {
	known := map[int]bool{}
	for _, pid := range pids {
		known[pid] = true
	}
	var added []int
	add := func(pid int, on uint64) {
		if on == dev && !known[pid] {
			known[pid] = true
			added = append(added, pid)
		}
	}
	for i := range s.Files {
		add(s.Files[i].PID, s.Files[i].Node.Dev)
	}
	for i := range s.Places {
		add(s.Places[i].PID, s.Places[i].Node.Dev)
	}
	return added
}

// look asks the kernel. Of the processes pids it tells what else they have. It
// does not find a process that has nothing of the file system but mappings and
// is not one of them: that has come by them since it was looked at last, a
// moment ago, and nobody keeps it from doing so a moment later.
func look(reader *fusestate.Reader, dev uint64, pids []int) (*kernelLook, error) {
	const parts = fusestate.Files | fusestate.NotOwn | fusestate.Places | fusestate.MappingsOf
	state, err := reader.Read(parts, pids...)
	if err != nil {
		return nil, err
	}
	if added := others(state, dev, pids); len(added) > 0 {
		more, err := reader.Read(fusestate.MappingsOf, added...)
		if err != nil {
			return nil, err
		}
		state.Mappings = append(state.Mappings, more.Mappings...)
		state.Busy = append(state.Busy, more.Busy...)
	}
	l := &kernelLook{map[int]*kernelUse{}, state.ConnOf(dev)}
	of := func(pid int) *kernelUse {
		u := l.uses[pid]
		if u == nil {
			u = &kernelUse{}
			l.uses[pid] = u
		}
		return u
	}
	runs(state.Files, func(f *fusestate.File) (int, bool) { return f.PID, f.Node.Dev == dev },
		func(pid int, files []fusestate.File) { u := of(pid); u.files = joined(u.files, files) })
	runs(state.Mappings, func(m *fusestate.Mapping) (int, bool) { return m.PID, m.Node.Dev == dev },
		func(pid int, maps []fusestate.Mapping) { u := of(pid); u.mappings = joined(u.mappings, maps) })
	for _, p := range state.Places {
		if p.Node.Dev == dev {
			u := of(p.PID)
			u.places = append(u.places, p)
		}
	}
	for _, d := range state.Devices {
		if d.Dev == dev {
			of(d.PID).device = true
		}
	}
	for _, pid := range state.Busy {
		of(pid).busy = true
	}
	for pid, u := range l.uses {
		u.others, u.counted = state.Others[pid]
	}
	return l, nil
}

// runs divides records into those in a row that are of one process, and leaves out
// the others. They are not copied: that takes memory, which is there only when it
// has been faulted in, page by page, and processes are stopped then.
func runs[T any](all []T, of func(*T) (pid int, ours bool), do func(pid int, run []T)) {
	for i := 0; i < len(all); {
		pid, ours := of(&all[i])
		n := i + 1
		for ; ours && n < len(all); n++ {
			if p, o := of(&all[n]); p != pid || !o {
				break
			}
		}
		if ours {
			do(pid, all[i:n:n])
		}
		i = n
	}
}

func joined[T any](a, b []T) []T {
	if a == nil {
		return b
	}
	return append(a, b...)
}

// same says whether a process has the same as before, under the same names, but
// for positions and sizes. It says no of locked files: whose locks they are is not
// told.
func (u *kernelUse) same(before *kernelUse) bool {
	if u == nil || before == nil || u.busy || before.busy || !u.counted || !before.counted ||
		u.others != before.others || u.device != before.device {
		return false
	}
	node := func(n fusestate.Node) fusestate.Node {
		n.Size, n.Lookups, n.Unwritten = 0, 0, false
		return n
	}
	return slices.EqualFunc(u.files, before.files, func(a, b fusestate.File) bool {
		a.Node, b.Node = node(a.Node), node(b.Node)
		a.Pos, b.Pos = 0, 0
		return a == b && a.Name != 0 && !a.Locked
	}) && slices.EqualFunc(u.mappings, before.mappings, func(a, b fusestate.Mapping) bool {
		a.Node, b.Node = node(a.Node), node(b.Node)
		a.Pos, b.Pos = 0, 0
		return a == b && a.Name != 0
	}) && slices.EqualFunc(u.places, before.places, func(a, b fusestate.Place) bool {
		a.Node, b.Node = node(a.Node), node(b.Node)
		return a == b && a.Name != 0
	})
}

// proven is a reading of a process that has the use since before it was read.
type proven struct {
	*visit
	use *kernelUse
}

// visitsOf makes the visits of a look that need not be at everybody: those who
// use the file system, have used it when they were read last, or are stopped.
// What others were read to have stays as it was read. (They run, and could
// change it a moment later as well.)
func (k *knowledge) visitsOf(l *kernelLook) []*visit {
	pids := map[int]bool{}
	for pid, u := range l.uses {
		known := k.rest[pid]
		if len(u.files)+len(u.mappings)+len(u.places) > 0 || u.busy ||
			u.device && (known == nil || !known.reading.kinds.servers) {
			pids[pid] = true
		}
	}
	for pid := range k.users {
		pids[pid] = true
	}
	for pid := range k.stopped {
		pids[pid] = true
	}
	delete(pids, os.Getpid())
	var visits []*visit
	for pid := range pids {
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+strconv.Itoa(pid), &st); err != nil {
			continue // gone
		}
		v := &visit{pid: pid, inode: st.Ino, brief: k.hung[pid] == st.Ino, stopped: k.stopped[pid]}
		if p := k.proven[pid]; v.stopped && p.visit != nil && p.inode == st.Ino && l.uses[pid].same(p.use) {
			v.before, v.use = p.reading, l.uses[pid]
		} else if old := k.still[pid]; v.stopped && old != nil && old.inode == st.Ino {
			v.before = old.reading
		}
		visits = append(visits, v)
	}
	return visits
}

// prove notes the readings during which nothing changed.
func (k *knowledge) prove(visits []*visit, before, after *kernelLook) {
	k.proven = map[int]proven{}
	for _, v := range visits {
		r := v.reading
		if v.stuck || v.err != nil || r == nil || len(r.obstacles)+len(r.traced) > 0 || !r.oneTable() {
			continue
		}
		if use := after.uses[v.pid]; use.same(before.uses[v.pid]) && r.agrees(use) {
			k.proven[v.pid] = proven{v, use}
		}
	}
}

// oneTable says whether at most one descriptor table of the process has
// anything of the file system, so that numbers alone tell descriptors.
func (r *reading) oneTable() bool {
	n := 0
	for _, t := range r.tables {
		if len(t.fds) > 0 {
			n++
		}
	}
	return n <= 1
}

// agrees says whether /proc showed what the kernel's tables have.
func (r *reading) agrees(u *kernelUse) bool {
	files := map[int]*fusestate.File{}
	for i := range u.files {
		files[u.files[i].FD] = &u.files[i]
	}
	n := 0
	for _, t := range r.tables {
		for _, fd := range t.fds {
			f := files[fd.ref.FD]
			if f == nil || f.Ino != fd.info.ino || f.Mount != fd.info.mount {
				return false
			}
			n++
		}
	}
	if n != len(u.files) || len(r.space.maps) != len(u.mappings) {
		return false
	}
	starts := map[uint64]uint64{}
	for i := range u.mappings {
		starts[u.mappings[i].Start] = u.mappings[i].End
	}
	for i := range r.space.maps {
		if starts[r.space.maps[i].start] != r.space.maps[i].end {
			return false
		}
	}
	return true
}

// agree says whether /proc showed what the kernel's tables had both before and
// after. They may differ for once, of a process that opens and closes all the
// time; or because we are wrong about the tables. Then nothing is built on them.
func agree(visits []*visit, before, after *kernelLook) bool {
	for _, v := range visits {
		r := v.reading
		if v.stuck || v.err != nil || r == nil || len(r.obstacles) > 0 {
			continue
		}
		b, a := before.uses[v.pid], after.uses[v.pid]
		if b == nil && a == nil && r.uses() || a.same(b) && r.oneTable() && !r.agrees(a) {
			return false
		}
	}
	return true
}

// update brings a reading of a process that has the same since up to date: what
// same leaves out.
func (r *reading) update(u *kernelUse) bool {
	files := map[int]*fusestate.File{}
	for i := range u.files {
		files[u.files[i].FD] = &u.files[i]
	}
	for _, t := range r.tables {
		for _, fd := range t.fds {
			f := files[fd.ref.FD]
			if f == nil {
				return false
			}
			fd.info.pos = f.Pos
			fd.attr.Size = uint64(f.Size)
		}
	}
	sizes := map[uint64]int64{} // by address
	for i := range u.mappings {
		sizes[u.mappings[i].Start] = u.mappings[i].Size
	}
	for i := range r.space.maps {
		r.space.maps[i].attr.Size = uint64(sizes[r.space.maps[i].start])
	}
	return true
}

// sameTasks says whether the process has the tasks that it had, and runs the
// same program.
func (r *reading) sameTasks(dir procDir, stat *procStat, w *reader) bool {
	if stat.comm != r.process.Comm || stat.start != r.process.Start || stat.compat() != r.compat || stat.threads != len(r.process.Tasks) {
		return false
	}
	if stat.threads == 1 {
		return true
	}
	tids, err := dir.numbers("task", w.large)
	slices.Sort(tids)
	return err == nil && slices.Equal(tids, r.process.Tasks)
}

// any says whether there is anything worth remembering.
func (k *kindsRead) any() bool {
	return k.uring || k.servers || len(k.sockets)+len(k.obstacles)+len(k.doubts) > 0
}

// resolve says who is in scope. With a kernelLook that is who was, and of those
// who use the file system now, who came to it.
func (k *knowledge) resolve(scope Scope, l *kernelLook) (Members, error) {
	if l == nil {
		var err error
		k.members, err = scope.resolve(k.members == nil)
		return k.members, err
	}
	var candidates []int
	for pid := range l.uses {
		if !k.members.Has(pid) {
			candidates = append(candidates, pid)
		}
	}
	return k.members, scope.extend(k.members, candidates)
}
