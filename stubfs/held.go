package stubfs

import (
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// Held is a request that waits, for people to read.
type Held struct {
	Op     string // the operation, as in the kernel's header: "LOOKUP"
	Node   uint64 // the kernel's number of the inode
	Path   string // from the directory, "" if not known
	PID    int    // process and thread that wait; 0 if nobody does, or unseen
	TID    int
	Comm   string
	Since  time.Time
	Unique uint64 // the request's number on its connection
}

// Held lists the requests that wait, in the order in which they will run. A
// process that ends meanwhile may be listed without its name.
func (f *FS) Held() []Held {
	waiting := f.gate.waiting()
	all := make([]Held, 0, len(waiting))
	tasks := map[int]task{}

	f.forgetMu.RLock()
	defer f.forgetMu.RUnlock()
	t := f.target()
	for _, h := range waiting {
		r := h.req
		e := Held{
			Op:     r.Opcode().String(),
			Node:   r.NodeID(),
			Since:  h.since,
			Unique: r.Unique(),
		}
		dir, known := "", t != nil
		if known {
			dir = t.Path(r.NodeID())
			known = dir != "" || r.NodeID() == 1
		} else if r.NodeID() == 1 {
			known = true // the root needs no target to be known
		}
		if known {
			e.Path = path.Join("/", dir, r.Name())
		}
		if tid := r.TID(); tid > 0 && !f.gate.isDetached(h) {
			k, ok := tasks[tid]
			if !ok {
				k = taskOf(tid)
				tasks[tid] = k
			}
			e.PID, e.TID, e.Comm = k.pid, tid, k.comm
		}
		all = append(all, e)
	}
	return all
}

func (g *gate) isDetached(h *held) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return h.detached
}

// task is who a thread is.
type task struct {
	pid  int
	comm string
}

func taskOf(tid int) task {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return task{}
	}
	pid, err := strconv.Atoi(statusField(status, "Tgid"))
	if err != nil {
		return task{}
	}
	// status has the name escaped, and so on one line (fs/proc/array.c
	// proc_task_name).
	return task{pid, strings.TrimSpace(statusField(status, "Name"))}
}
