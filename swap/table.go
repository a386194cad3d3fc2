package swap

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable prints the report for people: the mounts, a table per process,
// and what is in the way.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	for _, m := range r.Mounts {
		fmt.Fprintf(&b, "%s  %s %s at %s in mnt:[%d]", r.Device, printable(m.FSType), printable(m.Source), printable(m.Point), m.Namespace)
		if m.Root != "/" {
			fmt.Fprintf(&b, ", only %s", printable(m.Root))
		}
		b.WriteByte('\n')
	}
	for _, pid := range r.Servers {
		fmt.Fprintf(&b, "served by process %d\n", pid)
	}
	if len(r.Processes) == 0 {
		b.WriteString("no process uses it\n")
	}
	for i := range r.Processes {
		r.Processes[i].write(&b, r.Obstacles)
	}
	listed := map[int]bool{}
	for _, p := range r.Processes {
		listed[p.PID] = true
	}
	title, lossTitle := "\nin the way:\n", "\nlost with the daemon of --from:\n"
	for _, o := range r.Obstacles {
		if !listed[o.PID] {
			b.WriteString(title + "  ! " + o.String() + "\n")
			title = ""
		}
	}
	for _, o := range r.Losses {
		b.WriteString(lossTitle + "  - " + o.String() + "\n")
		lossTitle = ""
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *ProcessReport) write(b *strings.Builder, obstacles []Obstacle) {
	threads := "1 thread"
	if p.Threads != 1 {
		threads = fmt.Sprintf("%d threads", p.Threads)
	}
	fmt.Fprintf(b, "\nprocess %d (%s), %s\n", p.PID, printable(p.Comm), threads)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for i := range p.Holds {
		h := &p.Holds[i]
		cells := []string{"  " + h.Name(), h.Access, printable(h.Path)}
		notes := []string{}
		if h.Position != nil && *h.Position != 0 {
			notes = append(notes, fmt.Sprintf("at %d", *h.Position))
		}
		if len(h.SharedWith) > 0 {
			notes = append(notes, "shared with "+strings.Trim(fmt.Sprint(h.SharedWith), "[]"))
		}
		cells = append(cells, strings.Join(notes, ", "))
		if h.Action != "" {
			cells = append(cells, "→ "+h.Action)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	t.Flush() // into memory: can't fail
	for _, o := range obstacles {
		if o.PID == p.PID {
			o.Process = ""
			fmt.Fprintf(b, "  ! %s\n", o)
		}
	}
}
