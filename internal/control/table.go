package control

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// WriteTable prints mounts for people to read: one line each, and one for
// each request that waits.
func WriteTable(w io.Writer, mounts []*Status, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MOUNTPOINT\tMODE\tDIRECTORY\tSINCE\tHELD\tDAEMON")
	for _, s := range mounts {
		dir := s.Dir
		if s.Mode == ModeStub {
			dir = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\n", s.Mountpoint, s.Mode, dir, age(now, s.Since), len(s.Held), s.PID)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	for _, s := range mounts {
		if err := writeHeld(w, s, now); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	return nil
}

func writeHeld(w io.Writer, s *Status, now time.Time) error {
	if len(s.Held) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\nWaiting for %s:\n", s.Mountpoint); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PID\tTID\tCOMMAND\tOPERATION\tPATH\tSINCE")
	for _, h := range s.Held {
		pid, tid, comm, path := "-", "-", "-", h.Path
		if h.PID != 0 {
			pid, comm = fmt.Sprint(h.PID), h.Comm
		}
		if h.TID != 0 {
			tid = fmt.Sprint(h.TID)
		}
		if path == "" {
			path = fmt.Sprintf("(node %d)", h.Node)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", pid, tid, printable(comm), h.Op, printable(path), age(now, h.Since))
	}
	return t.Flush()
}

// age is how long ago something was.
func age(now, then time.Time) string {
	d := now.Sub(then)
	if d < time.Minute {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// printable keeps what a process has put into its name, or into that of a
// file, from reaching the terminal as anything but text.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	if q == `"`+s+`"` {
		return s
	}
	return q
}
