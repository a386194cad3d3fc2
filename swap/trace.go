package swap

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Trace is a record of when a run did what, to whom. Its methods may be called
// from any goroutine, and on a nil Trace, which records nothing.
type Trace struct {
	mu     sync.Mutex
	began  time.Time
	events []traceEvent
	names  map[int]string // of processes
	phase  func()         // ends the phase under way; nil if there is none
}

// traceEvent is an event of the format that Chrome and Perfetto read: a
// complete one, "X", of which times are in microseconds; or metadata, "M".
type traceEvent struct {
	Name string            `json:"name"`
	Kind string            `json:"ph"`
	At   float64           `json:"ts"`
	Took float64           `json:"dur"`
	PID  int               `json:"pid"`
	TID  int               `json:"tid"` // events of one do not overlap, but for those within others
	Args map[string]string `json:"args,omitempty"`
}

// NewTrace begins a trace.
func NewTrace() *Trace {
	return &Trace{began: time.Now(), names: map[int]string{os.Getpid(): "spfs-swap"}}
}

// Phase begins a part of the whole, and ends the one before.
func (t *Trace) Phase(name string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	end := t.phase
	t.mu.Unlock()
	if end != nil {
		end()
	}
	if name == "" {
		return
	}
	end = t.begin(os.Getpid(), name)
	t.mu.Lock()
	t.phase = end
	t.mu.Unlock()
}

// begin begins something that is done to a process, and returns what ends it.
func (t *Trace) begin(pid int, name string) (end func()) {
	if t == nil {
		return func() {}
	}
	since := time.Now()
	return func() { t.add(pid, name, since) }
}

// add notes that something was done to a process from since until now.
func (t *Trace) add(pid int, name string, since time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, traceEvent{
		Name: name, Kind: "X", PID: pid, TID: pid,
		At: microseconds(since.Sub(t.began)), Took: microseconds(time.Since(since)),
	})
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// name remembers what processes are called.
func (t *Trace) name(u *Usage) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range u.Processes {
		t.names[p.PID] = p.Comm
	}
}

// Write ends the phase under way and writes everything.
func (t *Trace) Write(w io.Writer) error {
	t.Phase("")
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]traceEvent, 0, len(t.names)+len(t.events))
	for pid, name := range t.names {
		all = append(all, traceEvent{Name: "process_name", Kind: "M", PID: pid, TID: pid,
			Args: map[string]string{"name": fmt.Sprintf("%d (%s)", pid, name)}})
	}
	return json.NewEncoder(w).Encode(struct {
		Events []traceEvent `json:"traceEvents"`
		Unit   string       `json:"displayTimeUnit"`
	}{append(all, t.events...), "ms"})
}

// phase says, in the trace and to whoever looks on, what comes next.
func (r *run) phase(name string) {
	r.options.Trace.Phase(name)
	if r.options.Progress != nil {
		r.options.Progress(name)
	}
}

// number is n things, in words.
func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}
