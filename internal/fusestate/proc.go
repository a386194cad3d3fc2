package fusestate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

// FromProc finds what /proc shows: the State is Partial. It sends no FUSE
// request. A process is Busy of which a task holds a lock that reading its
// mappings waits for, for longer than we care to wait.
//
// It does not find what is on a file system that is mounted nowhere any more.
func FromProc(ctx context.Context, parts Parts) (*State, error) {
	watch, err := mounts.NewWatch(ctx)
	if err != nil {
		return nil, fmt.Errorf("mount namespaces: %w", err)
	}
	defer watch.Close()
	p := &procReader{ctx: ctx, parts: parts, mounts: map[int]uint64{}, devices: map[uint64]bool{}}
	for _, space := range watch.Spaces() {
		for _, m := range space.Table {
			if m.FUSE() {
				p.mounts[m.ID] = m.Dev
				p.devices[m.Dev] = true
			}
		}
	}
	pids, err := numbers("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	s := &State{Partial: true}
	for _, pid := range pids {
		p.process(pid, s)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	conns := map[uint64]bool{0: true}
	for _, d := range s.Devices {
		if !conns[d.Dev] {
			conns[d.Dev] = true
			s.Conns = append(s.Conns, Conn{Dev: d.Dev})
		}
	}
	return s, nil
}

// FromProcOf is FromProc of some processes, and of the mounts by whose mnt_id it
// is given a st_dev. It looks at nothing else.
func FromProcOf(pids []int, mounted map[int]uint64) *State {
	p := &procReader{ctx: context.Background(), parts: All, mounts: mounted, devices: map[uint64]bool{}}
	for _, dev := range mounted {
		p.devices[dev] = true
	}
	s := &State{Partial: true}
	for _, pid := range pids {
		p.process(pid, s)
	}
	return s
}

// procReader reads processes.
type procReader struct {
	ctx     context.Context
	parts   Parts
	mounts  map[int]uint64 // st_dev of the mounts of FUSE, by mnt_id
	devices map[uint64]bool
}

// process adds what a process uses to s, or as much as is there while it ends.
func (p *procReader) process(pid int, s *State) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	tids, err := numbers(dir + "/task")
	if err != nil {
		return
	}
	var tables, contexts []int // a thread each
	for _, tid := range tids {
		task, at := Task{pid, tid}, filepath.Join(dir, "task", strconv.Itoa(tid))
		if p.parts&Files != 0 && !shares(tid, tables, kcmpFiles) {
			tables = append(tables, tid)
			p.files(task, at, s)
		}
		if p.parts&Places != 0 && !shares(tid, contexts, kcmpFS) {
			contexts = append(contexts, tid)
			p.place(task, Cwd, at+"/cwd", s)
			p.place(task, Root, at+"/root", s)
		}
	}
	if p.parts&Places != 0 {
		p.place(Task{pid, pid}, Exe, dir+"/exe", s)
	}
	if p.parts&Mappings != 0 {
		p.mappings(pid, dir, s)
	}
}

// The kinds of kcmp(2) (include/uapi/linux/kcmp.h).
const (
	kcmpFiles = 2
	kcmpFS    = 3
)

// shares says whether tid has the kernel object of a kind in common with one
// of others. If that can't be told, it says no: better twice than never.
func shares(tid int, others []int, kind uintptr) bool {
	for _, o := range others {
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(tid), uintptr(o), kind, 0, 0, 0)
		if errno == 0 && r == 0 {
			return true
		}
	}
	return false
}

func (p *procReader) files(t Task, dir string, s *State) {
	fds, _ := numbers(dir + "/fdinfo")
	for _, fd := range fds {
		text, err := os.ReadFile(dir + "/fdinfo/" + strconv.Itoa(fd))
		if err != nil {
			continue
		}
		info, err := parseFDInfo(text)
		if err != nil {
			continue
		}
		if dev, ok := p.mounts[info.mount]; ok {
			s.Files = append(s.Files, File{
				Task: t, FD: fd, CloseOnExec: info.flags&unix.O_CLOEXEC != 0, Node: Node{Dev: dev, Ino: info.ino},
				Open: Open{Flags: info.flags &^ unix.O_CLOEXEC, Pos: info.pos, Mount: info.mount},
			})
		}
		if info.device {
			s.Devices = append(s.Devices, Device{Task: t, FD: fd, Flags: info.flags, Dev: info.conn})
		}
	}
}

func (p *procReader) place(t Task, kind PlaceKind, link string, s *State) {
	// With an empty mask nobody is asked and nobody is refused (fs/fuse/dir.c
	// fuse_getattr).
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return
	}
	if dev := unix.Mkdev(st.Dev_major, st.Dev_minor); p.devices[dev] {
		s.Places = append(s.Places, Place{
			Task: t, Kind: kind, Mount: int(st.Mnt_id),
			Node: Node{Dev: dev, Ino: st.Ino},
		})
	}
}

// patience is how long the mappings of one process are waited for.
const patience = 2 * time.Second

func (p *procReader) mappings(pid int, dir string, s *State) {
	type result struct {
		text []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		text, err := os.ReadFile(dir + "/maps")
		read <- result{text, err}
	}()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case r := <-read:
		if r.err == nil {
			s.Mappings = append(s.Mappings, parseMaps(r.text, Task{pid, pid}, p.devices)...)
		}
	case <-timeout.C:
		s.Busy = append(s.Busy, pid)
	case <-p.ctx.Done():
	}
}

// numbers lists the entries of a directory that are numbers.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var found []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			found = append(found, n)
		}
	}
	return found, err
}

// fdInfo is what /proc/PID/fdinfo/N tells of any descriptor, and of an open
// /dev/fuse.
type fdInfo struct {
	pos   int64
	flags uint32
	mount int
	ino   uint64 // since Linux 5.14, else 0

	device bool   // an open /dev/fuse that serves
	conn   uint64 // its connection, as st_dev
}

var errFDInfo = errors.New("not understood")

// parseFDInfo reads the text of a fdinfo file (fs/proc/fd.c seq_show,
// fs/fuse/dev.c fuse_dev_show_fdinfo).
func parseFDInfo(text []byte) (fdInfo, error) {
	var info fdInfo
	var err error
	seen := 0
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		v := string(bytes.TrimSpace(value))
		var n uint64
		switch string(key) {
		case "pos":
			info.pos, err = strconv.ParseInt(v, 10, 64)
			seen++
		case "flags":
			n, err = strconv.ParseUint(v, 8, 32)
			info.flags = uint32(n)
			seen++
		case "mnt_id":
			info.mount, err = strconv.Atoi(v)
			seen++
		case "ino":
			info.ino, err = strconv.ParseUint(v, 10, 64)
		case "fuse_connection":
			n, err = strconv.ParseUint(v, 10, 32)
			info.device, info.conn = true, device(uint32(n))
		}
		if err != nil {
			return fdInfo{}, fmt.Errorf("fdinfo line %q: %w", line, errFDInfo)
		}
	}
	if seen < 3 {
		return fdInfo{}, fmt.Errorf("fdinfo without pos, flags or mnt_id: %w", errFDInfo)
	}
	return info, nil
}

// parseMaps picks the mappings of some devices out of the text of a maps file
// (fs/proc/task_mmu.c show_map_vma). Lines that are none are passed over.
func parseMaps(text []byte, t Task, devices map[uint64]bool) []Mapping {
	var found []Mapping
	for line := range bytes.Lines(text) {
		var m Mapping
		var perms string
		var major, minor uint32
		n, _ := fmt.Sscanf(string(line), "%x-%x %s %x %x:%x %d", &m.Start, &m.End, &perms, &m.Offset, &major, &minor, &m.Ino)
		if m.Node.Dev = unix.Mkdev(major, minor); n == 7 && devices[m.Node.Dev] {
			m.Task = t
			found = append(found, m)
		}
	}
	return found
}
