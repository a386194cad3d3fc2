package swap

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hangsIn are the functions that a task sleeps in (/proc/PID/wchan) when a call
// by a path hangs in a FUSE mount: fs/fuse/dev.c; fs/dcache.c, where somebody
// else has asked for the same name; kernel/locking/rwsem.c, in the same
// directory.
var hangsIn = []string{"request_wait_answer", "d_alloc_parallel", "d_wait_lookup", "rwsem_down_", "folio_wait_"}

// bystanders finds processes that hold nothing of the old file system, and hang
// in it all the same: in a call by a path that leads there. The call is known
// by what it was made with, so a path that goes through a symlink to the mount is
// not found.
func (p *Plan) bystanders(known map[int]bool) []*Process {
	users := map[int]bool{os.Getpid(): true}
	for _, process := range p.Usage.Processes {
		users[process.PID] = true
	}
	for _, pid := range p.Usage.Servers {
		users[pid] = true
	}
	points := map[uint64][]string{} // by namespace
	for _, m := range p.Usage.Mounts {
		points[m.Namespace.Inode] = append(points[m.Namespace.Inode], m.Point)
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []*Process
	for _, name := range names {
		pid, err := strconv.Atoi(name.Name())
		if err != nil || users[pid] || known[pid] {
			continue
		}
		tasks, err := os.ReadDir("/proc/" + name.Name() + "/task")
		if err != nil {
			continue
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err == nil && sleepsInFile(pid, tid) && soon(func() bool { return callsInto(pid, tid, points) }) {
				found = append(found, &Process{PID: pid, Comm: processName(pid)})
				break
			}
		}
	}
	return found
}

// sleepsInFile says whether a task sleeps as one does that hangs.
func sleepsInFile(pid, tid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/wchan", pid, tid))
	if err != nil {
		return false
	}
	for _, where := range hangsIn {
		if strings.HasPrefix(string(text), where) {
			return true
		}
	}
	return false
}

// soon is what ask says, or false if it takes long: a task may hold the locks
// that its memory and its call are looked at with.
func soon(ask func() bool) bool {
	answer := make(chan bool, 1)
	go func() { answer <- ask() }()
	select {
	case yes := <-answer:
		return yes
	case <-time.After(patience):
		return false
	}
}

// callsInto says whether a task is in a call with a path that leads to one of
// the mount points of its namespace.
func callsInto(pid, tid int, points map[uint64][]string) bool {
	dir := fmt.Sprintf("/proc/%d/task/%d/", pid, tid)
	link, err := os.Readlink(dir + "ns/mnt")
	if err != nil {
		return false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, "mnt:["), "]"), 10, 64)
	if err != nil || len(points[inode]) == 0 {
		return false
	}
	text, err := os.ReadFile(dir + "syscall")
	if err != nil {
		return false
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return false
	}
	defer mem.Close()
	root, err := os.Readlink(dir + "root")
	if err != nil {
		return false
	}
	for _, at := range callPointers(text) {
		buf := make([]byte, unix.PathMax)
		n, _ := mem.ReadAt(buf, int64(at)) // up to what is not mapped
		name, _, ended := bytes.Cut(buf[:n], []byte{0})
		if !ended || len(name) == 0 {
			continue
		}
		full := path.Join(root, string(name))
		if name[0] != '/' {
			cwd, err := os.Readlink(dir + "cwd")
			if err != nil {
				continue
			}
			full = path.Join(cwd, string(name))
		}
		for _, point := range points[inode] {
			if beneath(full, point) {
				return true
			}
		}
	}
	return false
}

// callPointers are the first arguments of the call in a text of
// /proc/PID/syscall (fs/proc/base.c, proc_pid_syscall) that may be addresses.
func callPointers(text []byte) []uint64 {
	const paths = 4 // no call has one further behind
	fields := strings.Fields(string(text))
	if len(fields) != 9 { // number, six arguments, stack pointer, program counter
		return nil
	}
	var at []uint64
	for _, f := range fields[1 : 1+paths] {
		if n, err := strconv.ParseUint(f, 0, 64); err == nil && n >= 4096 && n < 1<<63 {
			at = append(at, n)
		}
	}
	return at
}
