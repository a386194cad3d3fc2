package swap

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// assembly makes a [Usage] out of what was read of each process: each kernel
// object once, and what can't be swapped as obstacles.
type assembly struct {
	*Usage
	*scanner
	members   Members
	processes map[int]*Process
	known     *knowledge

	outsidePipes map[uint64]*Process // FIFOs, by inode number, that others have open
}

func newAssembly(u *Usage, s *scanner, members Members, k *knowledge) *assembly {
	if k.tasks == nil {
		k.tasks = map[int]ranks[int]{}
	}
	return &assembly{Usage: u, scanner: s, members: members, processes: map[int]*Process{}, known: k}
}

func (a *assembly) add(readings []*reading) {
	users := slices.DeleteFunc(slices.Clone(readings), func(r *reading) bool {
		inside := a.members.Has(r.process.PID)
		if r.kinds.servers {
			a.Servers = append(a.Servers, r.process.PID)
		}
		obstacles := slices.Concat(r.obstacles, r.kinds.obstacles)
		if r.uses() {
			obstacles = append(obstacles, r.kinds.doubts...)
		}
		if inside {
			a.Obstacles = append(a.Obstacles, obstacles...)
		}
		if !r.uses() && (len(obstacles) == 0 || !inside) {
			return true
		}
		a.processes[r.process.PID] = r.process
		if inside {
			a.Processes = append(a.Processes, r.process)
			a.addProcessObstacles(r)
		}
		return false
	})
	a.addTables(users)
	a.addEpolls(readings)
	a.addInotifies(readings)
	a.addContexts(users)
	a.addSpaces(users)
	a.addSockets(readings)
}

// addProcessObstacles adds what keeps a process as a whole from being swapped.
func (a *assembly) addProcessObstacles(r *reading) {
	if !r.uses() {
		return
	}
	p := r.process
	add := func(resource, reason, remedy string) {
		a.Obstacles = append(a.Obstacles, p.obstacle(resource, reason, remedy))
	}
	if r.kinds.servers {
		add("the daemon itself", "it serves the mount and uses it", "let it use the files beneath instead")
	}
	if p.PID == os.Getpid() {
		add("this program", "it can't swap itself", "run it from another directory, with files that are elsewhere")
	}
	if r.compat {
		add("program", "it is a 32-bit one", "restart it after")
	}
	if r.kinds.uring {
		add("io_uring", "requests in it may hold files of the mount, which can't be seen", "stop the process")
	}
	if len(r.traced) > 0 {
		add(fmt.Sprintf("%d of its threads", len(r.traced)), fmt.Sprintf("process %d traces them", r.tracer), "end the debugger")
	}
}

// within says whether some of the tasks are in scope, and names one that is
// not.
func (a *assembly) within(tasks []Task) (inside bool, outsider *Process) {
	for _, t := range tasks {
		if a.members.Has(t.PID) {
			inside = true
		} else {
			outsider = a.processes[t.PID]
		}
	}
	return inside, outsider
}

// insider is the first process in scope of some tasks.
func (a *assembly) insider(tasks []Task) *Process {
	for _, t := range tasks {
		if a.members.Has(t.PID) {
			return a.processes[t.PID]
		}
	}
	return a.processes[tasks[0].PID]
}

func (a *assembly) notShared(tasks []Task, what string, outsider *Process) {
	if outsider != nil {
		a.Obstacles = append(a.Obstacles, a.insider(tasks).obstacle(what, fmt.Sprintf("it is shared with process %v, which is not to be swapped", outsider), "swap both"))
	}
}

// addTables merges the tables that processes share, and the descriptions that
// tables share.
func (a *assembly) addTables(readings []*reading) {
	var tables []tableRead
	for _, r := range readings {
		for _, t := range r.tables {
			if len(t.fds) > 0 || r.watchesFor(&t) {
				tables = append(tables, t)
			}
		}
	}
	merged := map[*fdRead]*FDTable{}
	byFile := map[fileKey][]*fdRead{}
	var keys []fileKey
	for _, class := range shared(a.known, kcmpFiles, tables, func(t tableRead) int { return t.tasks[0].TID }) {
		table := &FDTable{}
		for _, t := range class {
			table.Tasks = append(table.Tasks, t.tasks...)
		}
		slices.SortFunc(table.Tasks, compareTasks)
		inside, outsider := a.within(table.Tasks)
		if inside {
			a.Tables = append(a.Tables, table)
			a.notShared(table.Tasks, "fd table", outsider)
		}
		for _, fd := range class[0].fds {
			merged[fd] = table
			key := fileKey{fd.mount.ID, fd.info.ino}
			if byFile[key] == nil {
				keys = append(keys, key)
			}
			byFile[key] = append(byFile[key], fd)
		}
	}
	slices.SortFunc(a.Tables, func(x, y *FDTable) int { return compareTasks(x.Tasks[0], y.Tasks[0]) })
	for _, class := range a.descriptions(keys, byFile) {
		a.addDescription(class, merged)
	}
	a.addPipeSharers()
	for _, t := range a.Tables {
		slices.SortFunc(t.FDs, func(x, y FD) int { return x.Num - y.Num })
	}
	slices.SortFunc(a.Descriptions, func(x, y *Description) int {
		return cmp.Or(compareTasks(x.Refs[0].Task, y.Refs[0].Task), x.Refs[0].FD-y.Refs[0].FD)
	})
}

// shared divides items by a kernel object that kcmp compares: those of the
// tasks that item's tid names share it.
func shared[T any](k *knowledge, what int, items []T, tid func(T) int) [][]T {
	apply(k.tasks[what], items, tid)
	found := classes(items, func(x, y T) (int, error) { return kcmp(tid(x), tid(y), what, 0, 0) })
	order := make(ranks[int], len(items))
	for i, item := range items {
		order[tid(item)] = i
	}
	k.tasks[what] = order
	return found
}

// descriptions divides the descriptors of each file by description.
func (a *assembly) descriptions(keys []fileKey, byFile map[fileKey][]*fdRead) [][]*fdRead {
	found := make([][][]*fdRead, len(keys))
	var wait sync.WaitGroup
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(keys)) {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := next.Add(1) - 1; int(i) < len(keys); i = next.Add(1) - 1 {
				files := byFile[keys[i]]
				apply(a.known.files, files, func(f *fdRead) FDRef { return f.ref })
				found[i] = classes(files, func(x, y *fdRead) (int, error) {
					return kcmp(x.ref.TID, y.ref.TID, kcmpFile, x.ref.FD, y.ref.FD)
				})
			}
		}()
	}
	wait.Wait()
	a.known.files = ranks[FDRef]{}
	for _, key := range keys {
		for i, f := range byFile[key] {
			a.known.files[f.ref] = i
		}
	}
	return slices.Concat(found...)
}

// fileKey is what descriptors must share to share a description.
type fileKey struct {
	mount int
	ino   uint64
}

func compareTasks(a, b Task) int { return cmp.Or(a.PID-b.PID, a.TID-b.TID) }

// addDescription makes a description of the descriptors that share it.
func (a *assembly) addDescription(fds []*fdRead, tables map[*fdRead]*FDTable) {
	slices.SortFunc(fds, func(x, y *fdRead) int {
		return cmp.Or(compareTasks(x.ref.Task, y.ref.Task), x.ref.FD-y.ref.FD)
	})
	tasks := make([]Task, len(fds))
	for i, fd := range fds {
		tasks[i] = fd.ref.Task
	}
	first := fds[0]
	inside, outsider := a.within(tasks)
	if !inside {
		a.noteOutsidePipe(first, outsider)
		return
	}
	d := &Description{
		Mount: first.mount, Ino: first.info.ino, Type: uint32(first.attr.Mode) & unix.S_IFMT,
		Flags: first.info.flags &^ unix.O_CLOEXEC, Pos: first.info.pos, NewPos: first.info.pos,
	}
	p := a.insider(tasks)
	number := "fd " + strconv.Itoa(first.ref.FD)
	d.Path, d.attr = a.path(p, number, first.mount, first.seen)
	resource := func() string { return number + " → " + printable(first.text) }
	for _, fd := range fds {
		d.Refs = append(d.Refs, fd.ref)
		table := tables[fd]
		table.FDs = append(table.FDs, FD{Num: fd.ref.FD, CloseOnExec: fd.info.flags&unix.O_CLOEXEC != 0, Description: d})
	}
	a.Descriptions = append(a.Descriptions, d)
	if outsider != nil {
		a.notShared(tasks, resource(), outsider)
	}
	add := func(reason, remedy string) {
		a.Obstacles = append(a.Obstacles, p.obstacle(resource(), reason, remedy))
	}
	if kind := specialKind(d.Type); kind != "" && d.Flags&unix.O_PATH == 0 && !d.isFIFO() {
		add("it is "+kind, "close it")
	}
	// Files and directories on FUSE don't know it: it is a flag and no more.
	if d.Flags&unix.O_ASYNC != 0 && specialKind(d.Type) != "" {
		add("it sends signals (O_ASYNC)", "clear the flag")
	}
	addLocks(d, fds, tables, add)
}

// specialKind names the types of files that aren't swapped.
func specialKind(mode uint32) string {
	switch mode {
	case unix.S_IFREG, unix.S_IFDIR:
		return ""
	case unix.S_IFIFO:
		return "a FIFO, with what is in it"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	case unix.S_IFLNK:
		return "a symlink"
	}
	return fmt.Sprintf("of the unknown type %#o", mode)
}

// deletedMark is what d_path (fs/d_path.c) appends to the name of an unlinked
// file. A file may also be called so.
const deletedMark = " (deleted)"

// path translates a link's text to a path from the file system's root.
func (a *assembly) path(p *Process, resource string, m *Mount, s seen) (string, attributes) {
	attr := attributes{Statx_t: s.attr}
	add := func(reason, remedy string) {
		a.Obstacles = append(a.Obstacles, p.obstacle(resource+" → "+printable(s.text), reason, remedy))
	}
	rest, ok := relative(s.text, m.Point)
	if !ok {
		// The path of what was moved out of the part that a bind mount shows
		// has no mount point in it.
		add("its path does not lie below its mount point "+printable(m.Point), "move it back, or close it")
		return s.text, attr
	}
	path := strings.TrimSuffix(m.Root, "/") + rest
	if path == "" {
		path = "/"
	}
	if name, marked := strings.CutSuffix(path, deletedMark); marked {
		if s.attr.Nlink == 0 {
			attr.unlinked = true
			path = name
			if s.attr.Mode&unix.S_IFMT != unix.S_IFREG {
				add("it is unlinked", "close it")
			}
		} else {
			attr.ambiguous = true
		}
	}
	return path, attr
}

// addContexts merges the fs_structs that processes share.
func (a *assembly) addContexts(readings []*reading) {
	var contexts []contextRead
	for _, r := range readings {
		for _, c := range r.contexts {
			if c.cwd != nil || c.root != nil {
				contexts = append(contexts, c)
			}
		}
	}
	for _, class := range shared(a.known, kcmpFS, contexts, func(c contextRead) int { return c.tasks[0].TID }) {
		c := &FSContext{}
		for _, x := range class {
			c.Tasks = append(c.Tasks, x.tasks...)
		}
		slices.SortFunc(c.Tasks, compareTasks)
		inside, outsider := a.within(c.Tasks)
		if !inside {
			continue
		}
		a.notShared(c.Tasks, "working directory", outsider)
		p := a.insider(c.Tasks)
		c.Cwd = a.directory(p, "cwd", class[0].cwd)
		c.Root = a.directory(p, "root", class[0].root)
		a.Contexts = append(a.Contexts, c)
	}
	slices.SortFunc(a.Contexts, func(x, y *FSContext) int { return compareTasks(x.Tasks[0], y.Tasks[0]) })
}

func (a *assembly) directory(p *Process, what string, r *placeRead) *Directory {
	if r == nil {
		return nil
	}
	d := &Directory{Mount: r.mount, Ino: r.attr.Ino}
	d.Path, d.attr = a.path(p, what, r.mount, r.seen)
	return d
}

// addSpaces merges the address spaces that processes share.
func (a *assembly) addSpaces(readings []*reading) {
	type space struct {
		spaceRead
		exe   *placeRead
		tasks []Task
	}
	var spaces []space
	for _, r := range readings {
		if len(r.space.maps) == 0 && r.exe == nil {
			continue
		}
		sp := space{spaceRead: r.space, exe: r.exe}
		for _, c := range r.contexts { // every live task is in one
			sp.tasks = append(sp.tasks, c.tasks...)
		}
		spaces = append(spaces, sp)
	}
	for _, class := range shared(a.known, kcmpVM, spaces, func(s space) int { return s.task.TID }) {
		s := &AddressSpace{}
		for _, x := range class {
			s.Tasks = append(s.Tasks, x.tasks...)
		}
		slices.SortFunc(s.Tasks, compareTasks)
		inside, outsider := a.within(s.Tasks)
		if !inside {
			continue
		}
		a.notShared(s.Tasks, "memory", outsider)
		p := a.insider(s.Tasks)
		for _, m := range class[0].maps {
			s.Mappings = append(s.Mappings, a.mapping(p, m))
		}
		s.Exe = a.executable(p, s, class[0].exe)
		a.addLocking(p, s)
		a.Spaces = append(a.Spaces, s)
	}
	slices.SortFunc(a.Spaces, func(x, y *AddressSpace) int { return compareTasks(x.Tasks[0], y.Tasks[0]) })
}

func (a *assembly) mapping(p *Process, r mapRead) *Mapping {
	m := &Mapping{
		Start: r.start, End: r.end, Offset: r.offset, Prot: r.prot, Shared: r.shared,
		MayWrite: r.shared && r.mayWrite(), Dirty: r.dirty, Mount: r.mount, Ino: r.ino,
	}
	resource := fmt.Sprintf("mapping %x-%x", r.start, r.end)
	m.Path, m.attr = a.path(p, resource, r.mount, r.seen)
	add := func(reason, remedy string) {
		a.Obstacles = append(a.Obstacles, p.obstacle(resource+" → "+printable(r.text), reason, remedy))
	}
	if kind := uint32(r.attr.Mode) & unix.S_IFMT; kind != unix.S_IFREG {
		add("it is of no regular file", "unmap it")
	}
	for _, odd := range r.oddFlags(&m.state) {
		add("it is "+odd, "undo that, or unmap it")
	}
	if r.vmFlags == nil {
		add("the kernel does not tell its flags", "report this")
	}
	return m
}

// printable is a path or name as it can be shown on one line.
func printable(s string) string {
	quoted := strconv.Quote(s)
	if quoted[1:len(quoted)-1] == s {
		return s
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) && !strings.Contains(s, "\n") {
		return s // quotes and backslashes only
	}
	return quoted
}
