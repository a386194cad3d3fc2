package swap

import (
	"bytes"
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

	exe    *placeRead // its program, if that is on the file system
	compat bool
	traced []Task
	tracer int
	kinds  kindsRead

	obstacles []Obstacle
}

// kindsRead is what the descriptors of a process that are not on the file
// system have to do with it all the same. Other processes may change that
// while this one is stopped.
type kindsRead struct {
	refs    []FDRef // what was looked at
	uring   bool
	servers bool             // it holds the file system's /dev/fuse
	sockets map[uint64]FDRef // Unix sockets, by inode

	epollFDs []FDRef // to be read if the process uses the file system
	epolls   []epollRead

	inotifies []inotifyRead

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
	if r.exe != nil || len(r.space.maps) > 0 || len(r.kinds.inotifies) > 0 {
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

func (p *Process) String() string { return fmt.Sprintf("%d (%s)", p.PID, p.Comm) }

func (p *Process) obstacle(resource, reason, remedy string) Obstacle {
	return Obstacle{PID: p.PID, Process: p.String(), Resource: resource, Reason: reason, Remedy: remedy}
}

// scanner reads processes. It may be used by several goroutines.
type scanner struct {
	dev    uint64
	anon   uint64         // device of the files that are epolls, inotifys, io_urings …
	mounts map[int]*Mount // of the file system, by mnt_id
	owner  *owner         // asks as the mount's owner where root may not
	hidden []int          // processes that can't be looked at
	some   bool           // not all processes are read

	// prompt says that statx with AT_STATX_DONT_SYNC asks no server, whatever
	// is mounted on the machine. If not, only mount numbers are looked at.
	prompt bool
	other  map[int]bool // all other mounts of all namespaces

	mu       sync.Mutex
	internal map[int]uint64 // devices of mounts that no namespace has
}

// errGone says that there is no such process (any more), or that it is a
// kernel thread or a zombie: nothing that could use a file system.
var errGone = errors.New("no process")

// errKernel is errGone of a kernel thread.
var errKernel = fmt.Errorf("a kernel thread: %w", errGone)

// readFiles reads everything but the memory of the process of a directory in
// /proc. Nothing in it waits for a file system, nor for a lock that a task may
// hold while it waits for one.
func (s *scanner) readFiles(w *reader, dir procDir, pid int) (*reading, error) {
	text, err := dir.record("stat", w.small)
	if err != nil {
		return nil, errGone
	}
	stat, err := parseStat(text)
	if err != nil {
		return nil, err
	}
	if stat.kernel() {
		return nil, errKernel
	}
	tids := []int{pid}
	if stat.threads != 1 {
		if tids, err = dir.numbers("task", w.large); err != nil {
			return nil, errGone
		}
		slices.Sort(tids)
	}
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
		if err := s.readTable(w, dir, r, &r.tables[i]); err != nil {
			return nil, err
		}
	}
	s.readEpolls(w, dir, r)
	for i := range r.contexts {
		c := &r.contexts[i]
		if c.cwd, err = s.readPlace(dir, r, c.tasks[0].below()+"cwd"); err != nil {
			return nil, err
		}
		if c.root, err = s.readPlace(dir, r, c.tasks[0].below()+"root"); err != nil {
			return nil, err
		}
	}
	r.exe, err = s.readPlace(dir, r, live[0].below()+"exe")
	return r, err
}

// below is where a task's files are below its process's directory in /proc,
// which is its leader's.
func (t Task) below() string {
	if t.TID == t.PID {
		return ""
	}
	return "task/" + strconv.Itoa(t.TID) + "/"
}

// readTable reads the descriptors of one table.
func (s *scanner) readTable(w *reader, dir procDir, r *reading, t *tableRead) error {
	task := t.tasks[0]
	links, err := dir.open(task.below() + "fd")
	if err != nil {
		return vanished(err)
	}
	defer links.close()
	fds, err := links.numbers(".", w.large)
	if err != nil {
		return vanished(err)
	}
	slices.Sort(fds)
	infos, err := dir.open(task.below() + "fdinfo")
	if err != nil {
		return vanished(err)
	}
	defer infos.close()
	// Each part collects for itself, so that no two touch the same reading.
	parts := make([]tablePartRead, max(1, (len(fds)+tablePart-1)/tablePart))
	var wait sync.WaitGroup
	for i := range parts {
		part := &parts[i]
		part.process = r.process
		read := func(buf []byte) {
			for _, fd := range fds[i*tablePart : min((i+1)*tablePart, len(fds))] {
				s.readFD(infos, links, part, FDRef{task, fd}, buf)
			}
		}
		if i == len(parts)-1 {
			read(w.small)
			continue
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			read(make([]byte, len(w.small)))
		}()
	}
	wait.Wait()
	for i := range parts {
		t.fds = append(t.fds, parts[i].fds...)
		r.obstacles = append(r.obstacles, parts[i].obstacles...)
		r.kinds.add(&parts[i].kinds)
	}
	return nil
}

// tablePartRead is what was read of some of a table's descriptors.
type tablePartRead struct {
	process   *Process
	fds       []*fdRead
	kinds     kindsRead
	obstacles []Obstacle
}

func (p *tablePartRead) obstacle(resource, reason, remedy string) {
	p.obstacles = append(p.obstacles, p.process.obstacle(resource, reason, remedy))
}

// add adds what was found with other descriptors of the process.
func (k *kindsRead) add(part *kindsRead) {
	k.refs = append(k.refs, part.refs...)
	k.obstacles = append(k.obstacles, part.obstacles...)
	k.doubts = append(k.doubts, part.doubts...)
	k.epollFDs = append(k.epollFDs, part.epollFDs...)
	k.epolls = append(k.epolls, part.epolls...)
	k.inotifies = append(k.inotifies, part.inotifies...)
	k.uring = k.uring || part.uring
	k.servers = k.servers || part.servers
	if k.sockets == nil {
		k.sockets = part.sockets
		return
	}
	maps.Copy(k.sockets, part.sockets)
}

// tablePart is how many descriptors are worth a goroutine.
const tablePart = 128

// readFD reads one descriptor into part: if it is not on the file system, only
// what it has to do with that all the same, if anything.
func (s *scanner) readFD(infos, links procDir, part *tablePartRead, ref FDRef, buf []byte) {
	name := strconv.Itoa(ref.FD)
	var attr unix.Statx_t
	var ours bool
	var err error
	if s.prompt {
		// One system call says of most that they are none of our business.
		attr, ours, err = s.examine(links, name)
		if err == nil && !ours && !s.telling(&attr) || err != nil && vanished(err) == nil {
			return
		}
	}
	if !s.prompt || device(&attr) == s.anon {
		if text, err := links.link(name); err == nil && text == epollLink {
			part.kinds.epollFDs = append(part.kinds.epollFDs, ref)
			return
		}
	}
	text, infoErr := infos.record(name, buf)
	if infoErr != nil {
		return // closed meanwhile
	}
	info, infoErr := parseFDInfo(text)
	if infoErr != nil {
		part.obstacle("fd "+name, fmt.Sprintf("the kernel's description of it is strange (%v)", infoErr), "report this")
		return
	}
	if s.mounts[info.mount] == nil {
		s.readKind(&part.kinds, part.process, ref, &info)
	}
	if !s.prompt {
		if !s.on(links, name, info.mount) {
			return
		}
		attr, ours, err = s.examine(links, name)
	}
	if err != nil {
		if vanished(err) != nil {
			part.obstacle("fd "+name, fmt.Sprintf("its type can't be told (%v)", err), allowRootRemedy)
		}
		return
	}
	if !ours || int(attr.Mnt_id) != info.mount {
		return // none of ours, or another file by now: it changes as we look
	}
	f := &fdRead{ref: ref, info: info, mount: s.mounts[info.mount], seen: seen{attr: attr}}
	if f.text, err = links.link(name); err != nil {
		if vanished(err) != nil {
			part.obstacle("fd "+name, fmt.Sprintf("its path can't be told (%v)", err), "close it")
		}
		return
	}
	if f.mount == nil {
		part.obstacle("fd "+name+" → "+printable(f.text), "it was opened through a mount that has been detached since", detachedRemedy)
		return
	}
	part.fds = append(part.fds, f)
}

// telling says whether the fdinfo of a file of another file system may have to
// do with ours: that of sockets, of /dev/fuse, and of all that is no file at
// all but lives in the kernel's anonymous file system.
func (s *scanner) telling(st *unix.Statx_t) bool {
	const fuseMajor, fuseMinor = 10, 229 // Documentation/admin-guide/devices.txt
	return device(st) == s.anon || st.Mode&unix.S_IFMT == unix.S_IFSOCK ||
		st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == fuseMajor && st.Rdev_minor == fuseMinor
}

// examine returns what the kernel knows of a link's target, and whether it is
// on the file system.
func (s *scanner) examine(dir procDir, link string) (st unix.Statx_t, ours bool, err error) {
	if st, err = dir.attributes(link); err == nil || vanished(err) == nil {
		return st, err == nil && device(&st) == s.dev, err
	}
	if st, placeErr := dir.place(link); placeErr != nil || device(&st) != s.dev {
		return st, false, placeErr
	}
	if errors.Is(err, unix.EACCES) {
		st, err = s.owner.attributes(dir, link)
	}
	return st, true, err
}

// asking are the file systems whose getattr asks a server, or waits for other
// machines, in spite of AT_STATX_DONT_SYNC (the getattr of each in fs/). Ones
// that are not in the kernel are taken to behave.
var asking = map[string]bool{
	"9p": true, "cifs": true, "smb3": true, "coda": true,
	"gfs2": true, "ocfs2": true, "orangefs": true,
}

// anonymousDevice is the device of the kernel's anonymous file system
// (fs/anon_inodes.c), which an eventfd is on.
func anonymousDevice() (uint64, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat of an eventfd: %w", err)
	}
	return st.Dev, nil
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
		at, err := dir.place(link)
		if err != nil || int(at.Mnt_id) != mount {
			return false // closed meanwhile
		}
		dev = device(&at)
		s.mu.Lock()
		s.internal[mount] = dev
		s.mu.Unlock()
	}
	return dev == s.dev
}

// readPlace reads the link to a directory, and returns nil if that is not on
// the file system, or can't be swapped: then r has an obstacle.
func (s *scanner) readPlace(dir procDir, r *reading, link string) (*placeRead, error) {
	place, err := dir.place(link)
	if err != nil || device(&place) != s.dev {
		return nil, vanished(err)
	}
	p := &placeRead{}
	what := link[strings.LastIndexByte(link, '/')+1:]
	if p.seen, err = s.look(dir, link); err != nil {
		if vanished(err) != nil {
			r.obstacle(what, fmt.Sprintf("its type can't be told (%v)", err), allowRootRemedy)
		}
		return nil, nil
	}
	if p.mount = s.mounts[int(p.attr.Mnt_id)]; p.mount == nil {
		r.obstacle(what+" "+printable(p.text), "it is on a mount that has been detached", detachedRemedy)
		return nil, nil
	}
	return p, nil
}

// look reads a link's text and what the kernel knows of its target.
func (s *scanner) look(dir procDir, link string) (seen, error) {
	text, err := dir.link(link)
	if err != nil {
		return seen{}, err
	}
	attr, _, err := s.examine(dir, link)
	return seen{text, attr}, err
}

// readKind looks for what a descriptor of another file system has to do with
// ours.
func (s *scanner) readKind(k *kindsRead, p *Process, ref FDRef, info *fdInfo) {
	name := "fd " + strconv.Itoa(ref.FD)
	k.refs = append(k.refs, ref)
	obstacle := func(resource, reason, remedy string) {
		k.obstacles = append(k.obstacles, p.obstacle(resource, reason, remedy))
	}
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
	if kinds["epoll"] > 0 {
		k.epolls = append(k.epolls, epollRead{ref, info.watches})
	}
	if kinds["inotify"] > 0 {
		k.readInotify(s.dev, ref, info, obstacle)
	}
	if n := kinds["fanotify"]; n > 0 {
		obstacle(name+" (fanotify)", fmt.Sprintf("it has %d marks on the mount or its files: events of it hold files of the old ones", n), "remove the marks or stop the process")
	}
	if info.uring {
		k.uring = true
		for _, path := range info.files {
			if s.covers(path) {
				obstacle(name+" (io_uring)", "the file "+printable(path)+" is registered with it", "stop the process")
			}
		}
	}
	if info.unixSock {
		if k.sockets == nil {
			k.sockets = map[uint64]FDRef{}
		}
		k.sockets[info.ino] = ref
	}
	if info.scmFDs > 0 {
		// That of processes that don't use the file system is no matter: much
		// of the machine may be like that.
		doubt := p.obstacle(name+" (Unix socket)", fmt.Sprintf("%d descriptors are in flight in it, and can't be looked at", info.scmFDs), "let the process receive them, then try again")
		doubt.inFlight, doubt.unasked = &inFlight{ref, info.scmFDs}, true
		k.doubts = append(k.doubts, doubt)
	}
	if info.fuse != 0 && unix.Mkdev(0, uint32(info.fuse)) == s.dev {
		k.servers = true
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

// memoryRead is what readMemory and readTracers found.
type memoryRead struct {
	maps      []mapRead
	traced    []Task
	tracer    int
	obstacles []Obstacle
}

// readMemory reads the mappings. It may hang: a task that waits for its file
// system in a system call like mmap(2) holds mmap_lock, and so does a page
// fault while a writer queues behind it; and smaps waits for the lock
// (fs/proc/task_mmu.c m_start). It shares nothing with the caller.
func (s *scanner) readMemory(w *reader, dir procDir, p *Process, task Task) (memoryRead, error) {
	var m memoryRead
	text, err := dir.read(task.below()+"maps", w.large)
	if err != nil {
		return m, vanished(err)
	}
	if !bytes.Contains(text, deviceText(s.dev)) {
		return m, nil
	}
	lines, err := parseMaps(text, s.dev)
	if err != nil || len(lines) == 0 {
		return m, err
	}
	if text, err = dir.read(task.below()+"smaps", text); err != nil {
		return m, vanished(err)
	}
	if lines, err = parseSmaps(text, s.dev); err != nil {
		return m, err
	}
	files, err := dir.open("map_files")
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
