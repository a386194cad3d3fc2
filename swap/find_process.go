package swap

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// reading is what one process was found to hold. A scanner fills it in two
// parts: the files first, which nothing can block, then the memory.
type reading struct {
	process  *Process
	tables   []tableRead
	contexts []contextRead
	space    spaceRead

	exe     bool // its executable is on the file system
	compat  bool
	uring   bool
	servers bool // it holds the file system's /dev/fuse
	traced  []Task
	tracer  int
	sockets map[uint64]FDRef // Unix sockets, by inode

	obstacles []Obstacle
	doubts    []Obstacle // obstacles if the process uses the file system
}

type tableRead struct {
	tasks []Task
	fds   []*fdRead
}

type fdRead struct {
	ref   FDRef
	info  fdInfo
	mount *Mount
	seen
}

// seen is a file of the file system as some link showed it.
type seen struct {
	text string // the link's text
	attr unix.Statx_t
}

type contextRead struct {
	tasks     []Task
	cwd, root *placeRead
}

type placeRead struct {
	mount *Mount
	seen
}

type spaceRead struct {
	task Task
	maps []mapRead
}

type mapRead struct {
	mapLine
	mount *Mount
	seen
}

// uses says whether the process holds anything of the file system.
func (r *reading) uses() bool {
	if r.exe || len(r.space.maps) > 0 {
		return true
	}
	for _, t := range r.tables {
		if len(t.fds) > 0 {
			return true
		}
	}
	for _, c := range r.contexts {
		if c.cwd != nil || c.root != nil {
			return true
		}
	}
	return false
}

func (r *reading) obstacle(resource, reason, remedy string) {
	r.obstacles = append(r.obstacles, r.process.obstacle(resource, reason, remedy))
}

// doubt notes what is in the way of a process that uses the file system, and
// says nothing of one that doesn't: much of the machine may be like that.
func (r *reading) doubt(resource, reason, remedy string) {
	r.doubts = append(r.doubts, r.process.obstacle(resource, reason, remedy))
}

func (p *Process) String() string { return fmt.Sprintf("%d (%s)", p.PID, p.Comm) }

func (p *Process) obstacle(resource, reason, remedy string) Obstacle {
	return Obstacle{PID: p.PID, Process: p.String(), Resource: resource, Reason: reason, Remedy: remedy}
}

// scanner reads processes. It may be used by several goroutines.
type scanner struct {
	dev    uint64
	mounts map[int]*Mount // of the file system, by mnt_id
	other  map[int]bool   // all other mounts of all namespaces
	owner  *owner         // asks as the mount's owner where root may not

	hidden []int // processes that may not be looked at

	mu       sync.Mutex
	internal map[int]uint64 // devices of mounts that no namespace has
}

// errGone says that there is no such process (any more), or that it is a
// kernel thread or a zombie: nothing that could use a file system.
var errGone = errors.New("no process")

// readFiles reads everything but the memory. Nothing in it waits for a file
// system, nor for a lock that a task may hold while it waits for one.
func (s *scanner) readFiles(pid int) (*reading, error) {
	dir, err := openProcDir("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return nil, errGone
	}
	defer dir.close()
	buf := make([]byte, 4096)
	text, err := dir.record("stat", buf)
	if err != nil {
		return nil, errGone
	}
	stat, err := parseStat(text)
	if err != nil {
		return nil, err
	}
	if stat.kernel() {
		return nil, errGone
	}
	tids, err := dir.numbers("task")
	if err != nil {
		return nil, errGone
	}
	slices.Sort(tids)
	r := &reading{
		process: &Process{PID: pid, Comm: stat.comm, Start: stat.start, Tasks: tids},
		compat:  stat.compat(),
	}
	var live []Task
	for _, tid := range tids {
		if tid == pid && stat.gone() {
			continue // a leader that ended before its threads holds nothing
		}
		live = append(live, Task{pid, tid})
	}
	if len(live) == 0 {
		return nil, errGone
	}
	r.space.task = live[0]
	for _, t := range live {
		i := slices.IndexFunc(r.tables, func(o tableRead) bool { return same(o.tasks[0].TID, t.TID, kcmpFiles) })
		if i >= 0 {
			r.tables[i].tasks = append(r.tables[i].tasks, t)
		} else {
			r.tables = append(r.tables, tableRead{tasks: []Task{t}})
		}
		i = slices.IndexFunc(r.contexts, func(o contextRead) bool { return same(o.tasks[0].TID, t.TID, kcmpFS) })
		if i >= 0 {
			r.contexts[i].tasks = append(r.contexts[i].tasks, t)
		} else {
			r.contexts = append(r.contexts, contextRead{tasks: []Task{t}})
		}
	}
	for i := range r.tables {
		if err := s.readTable(dir, r, &r.tables[i], buf); err != nil {
			return nil, err
		}
	}
	for i := range r.contexts {
		c := &r.contexts[i]
		task := "task/" + strconv.Itoa(c.tasks[0].TID)
		if c.cwd, err = s.readPlace(dir, r, task+"/cwd"); err != nil {
			return nil, err
		}
		if c.root, err = s.readPlace(dir, r, task+"/root"); err != nil {
			return nil, err
		}
	}
	if dev, _, err := dir.place("exe"); err == nil {
		r.exe = dev == s.dev
	}
	return r, nil
}

// readTable reads the descriptors of one table.
func (s *scanner) readTable(dir procDir, r *reading, t *tableRead, buf []byte) error {
	task := t.tasks[0]
	sub, err := dir.open("task/" + strconv.Itoa(task.TID))
	if err != nil {
		return nil // gone
	}
	defer sub.close()
	fds, err := sub.numbers("fd")
	if err != nil {
		return vanished(err)
	}
	slices.Sort(fds)
	infos, err := sub.open("fdinfo")
	if err != nil {
		return vanished(err)
	}
	defer infos.close()
	links, err := sub.open("fd")
	if err != nil {
		return vanished(err)
	}
	defer links.close()
	// Each part collects for itself, so that no two touch the same reading.
	parts := make([]reading, (len(fds)+tablePart-1)/tablePart)
	found := make([][]*fdRead, len(parts))
	var wait sync.WaitGroup
	for i := range parts {
		parts[i].process = r.process
		read := func(buf []byte) {
			for _, fd := range fds[i*tablePart : min((i+1)*tablePart, len(fds))] {
				if f := s.readFD(infos, links, &parts[i], FDRef{task, fd}, buf); f != nil {
					found[i] = append(found[i], f)
				}
			}
		}
		if i == len(parts)-1 {
			read(buf)
			continue
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			read(make([]byte, len(buf)))
		}()
	}
	wait.Wait()
	for i := range parts {
		t.fds = append(t.fds, found[i]...)
		r.take(&parts[i])
	}
	return nil
}

// tablePart is how many descriptors are worth a goroutine.
const tablePart = 256

// take adds what was read of a part of a process's descriptors.
func (r *reading) take(part *reading) {
	r.obstacles = append(r.obstacles, part.obstacles...)
	r.doubts = append(r.doubts, part.doubts...)
	r.uring = r.uring || part.uring
	r.servers = r.servers || part.servers
	if r.sockets == nil {
		r.sockets = part.sockets
		return
	}
	maps.Copy(r.sockets, part.sockets)
}

// readFD reads one descriptor, and returns nil if it is not on the file
// system, or can't be swapped: then r has an obstacle.
func (s *scanner) readFD(infos, links procDir, r *reading, ref FDRef, buf []byte) *fdRead {
	name := strconv.Itoa(ref.FD)
	text, err := infos.record(name, buf)
	if err != nil {
		return nil // closed meanwhile
	}
	info, err := parseFDInfo(text)
	if err != nil {
		r.obstacle("fd "+name, fmt.Sprintf("the kernel's description of it is strange (%v)", err), "report this")
		return nil
	}
	s.readKind(r, ref, &info)
	if !s.on(links, name, info.mount) {
		return nil
	}
	f := &fdRead{ref: ref, info: info, mount: s.mounts[info.mount]}
	if f.seen, err = s.look(links, name); err != nil {
		if vanished(err) != nil {
			r.obstacle("fd "+name, fmt.Sprintf("its type can't be told (%v)", err), allowRootRemedy)
		}
		return nil
	}
	if int(f.attr.Mnt_id) != info.mount {
		return nil // another file by now: it changes as we look
	}
	if f.mount == nil {
		r.obstacle("fd "+name+" → "+printable(f.text), "it was opened through a mount that has been detached since", detachedRemedy)
		return nil
	}
	return f
}

const (
	allowRootRemedy = "mount with allow_other, or set the fuse module's parameter allow_sys_admin_access"
	detachedRemedy  = "close it, or restart the process"
)

// vanished turns the errors of a task or descriptor that is gone into nil.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// on says whether a link leads to the file system. What is on a mount that
// some namespace has needs no look at the link.
func (s *scanner) on(dir procDir, link string, mount int) bool {
	if s.mounts[mount] != nil {
		return true
	}
	if s.other[mount] {
		return false
	}
	s.mu.Lock()
	dev, known := s.internal[mount]
	s.mu.Unlock()
	if !known {
		var id int
		var err error
		if dev, id, err = dir.place(link); err != nil || id != mount {
			return false // closed meanwhile
		}
		s.mu.Lock()
		s.internal[mount] = dev
		s.mu.Unlock()
	}
	return dev == s.dev
}

// look reads a link's text and what the kernel knows of its target.
func (s *scanner) look(dir procDir, link string) (seen, error) {
	text, err := dir.link(link)
	if err != nil {
		return seen{}, err
	}
	attr, err := dir.attributes(link)
	if errors.Is(err, unix.EACCES) {
		attr, err = s.owner.attributes(dir, link)
	}
	return seen{text, attr}, err
}

func (s *scanner) readPlace(dir procDir, r *reading, link string) (*placeRead, error) {
	dev, id, err := dir.place(link)
	if err != nil || dev != s.dev {
		return nil, vanished(err)
	}
	p := &placeRead{mount: s.mounts[id]}
	what := link[strings.LastIndexByte(link, '/')+1:]
	if p.seen, err = s.look(dir, link); err != nil {
		if vanished(err) != nil {
			r.obstacle(what, fmt.Sprintf("its type can't be told (%v)", err), allowRootRemedy)
		}
		return nil, nil
	}
	if p.mount == nil {
		r.obstacle(what+" "+printable(p.text), "it is on a mount that has been detached", detachedRemedy)
		return nil, nil
	}
	return p, nil
}

// readKind looks for what a descriptor of any file system has to do with ours.
func (s *scanner) readKind(r *reading, ref FDRef, info *fdInfo) {
	name := "fd " + strconv.Itoa(ref.FD)
	kinds := map[string]int(nil)
	if len(info.watches) > 0 {
		kinds = map[string]int{}
	}
	for _, w := range info.watches {
		switch {
		case w.hasDev && w.sdev == kernelDev(s.dev), w.mount != 0 && s.mounts[w.mount] != nil:
			kinds[w.kind]++
		case !w.hasDev && w.mount == 0:
			kinds[w.kind]++ // it does not say what it watches
		}
	}
	for _, kind := range []string{"epoll", "inotify", "fanotify"} {
		if n := kinds[kind]; n > 0 {
			r.obstacle(name+" ("+kind+")", fmt.Sprintf("it watches %d of the mount's files, and would go on watching the old ones", n), "remove the watches or stop the process")
		}
	}
	if info.uring {
		r.uring = true
		for _, path := range info.files {
			if s.covers(path) {
				r.obstacle(name+" (io_uring)", "the file "+printable(path)+" is registered with it", "stop the process")
			}
		}
	}
	if info.unixSock {
		if r.sockets == nil {
			r.sockets = map[uint64]FDRef{}
		}
		r.sockets[info.ino] = ref
	}
	if info.scmFDs > 0 {
		r.doubt(name+" (Unix socket)", fmt.Sprintf("%d descriptors are in flight in it, and can't be looked at", info.scmFDs), "let the process receive them, then try again")
	}
	if info.fuse != 0 && unix.Mkdev(0, uint32(info.fuse)) == s.dev {
		r.servers = true
	}
}

// covers says whether a path, as the kernel prints it, may lie on one of the
// file system's mounts.
func (s *scanner) covers(path string) bool {
	for _, m := range s.mounts {
		if beneath(path, m.Point) {
			return true
		}
	}
	return false
}

// beneath says whether path is dir or in it.
func beneath(path, dir string) bool {
	_, ok := relative(path, dir)
	return ok
}

// relative returns what comes after dir in path, with its slash, or "" if they
// are the same.
func relative(path, dir string) (string, bool) {
	if dir == "/" {
		if path == "/" {
			return "", true
		}
		return path, strings.HasPrefix(path, "/")
	}
	rest, ok := strings.CutPrefix(path, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// kernelDev is a device as the kernel's dev_t (include/linux/kdev_t.h MKDEV).
func kernelDev(dev uint64) uint64 {
	return uint64(unix.Major(dev))<<20 | uint64(unix.Minor(dev))
}

// memoryRead is what readMemory found.
type memoryRead struct {
	maps      []mapRead
	obstacles []Obstacle
}

// readMemory reads the mappings. It may hang: a task that waits for its file
// system in a system call like mmap(2) holds mmap_lock, and so does a page
// fault while a writer queues behind it; and smaps waits for the lock
// (fs/proc/task_mmu.c m_start). It shares nothing with the caller.
func (s *scanner) readMemory(p *Process, task Task) (memoryRead, error) {
	var m memoryRead
	dir, err := openProcDir(fmt.Sprintf("/proc/%d/task/%d", task.PID, task.TID))
	if err != nil {
		return m, nil // gone
	}
	defer dir.close()
	buf := make([]byte, 64<<10)
	text, err := dir.read("maps", buf)
	if err != nil {
		return m, vanished(err)
	}
	lines, err := parseMaps(text, s.dev)
	if err != nil || len(lines) == 0 {
		return m, err
	}
	if text, err = dir.read("smaps", text); err != nil {
		return m, vanished(err)
	}
	if lines, err = parseSmaps(text, s.dev); err != nil {
		return m, err
	}
	files, err := openProcDir(fmt.Sprintf("/proc/%d/map_files", task.PID))
	if err != nil {
		return m, vanished(err)
	}
	defer files.close()
	for _, line := range lines {
		name := fmt.Sprintf("%x-%x", line.start, line.end)
		what := "mapping " + name
		look, err := s.look(files, name)
		if err != nil {
			if vanished(err) != nil {
				m.obstacles = append(m.obstacles, p.obstacle(what, fmt.Sprintf("its file can't be told (%v)", err), allowRootRemedy))
			}
			continue
		}
		mount := s.mounts[int(look.attr.Mnt_id)]
		if mount == nil {
			m.obstacles = append(m.obstacles, p.obstacle(what+" of "+printable(look.text), "it was made through a mount that has been detached since", detachedRemedy))
			continue
		}
		m.maps = append(m.maps, mapRead{line, mount, look})
	}
	return m, nil
}
