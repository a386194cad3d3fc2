package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/swap"
)

// observer watches a run: it shows on a terminal what is being done, in one
// line that is gone in the end, and writes the trace. It keeps nobody waiting:
// a terminal may not take what is written to it, and may itself be one of the
// processes that are stopped.
type observer struct {
	trace *swap.Trace // nil if none is wanted
	file  *os.File    // where it goes

	lines chan string // nil if there is no terminal
	over  chan struct{}
	ended bool
}

// clear clears the line that was shown last.
const clear = "\r\x1b[K"

// newObserver makes the file for the trace, unless path is empty.
func newObserver(path string) (*observer, error) {
	o := &observer{}
	if path != "" {
		f, err := os.Create(path)
		if err != nil {
			return nil, fmt.Errorf("--trace: %w", err)
		}
		o.trace, o.file = swap.NewTrace(), f
	}
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		const most = 16 // what comes while the terminal takes nothing is left out
		o.lines, o.over = make(chan string, most), make(chan struct{})
		go func() {
			defer close(o.over)
			for line := range o.lines {
				fmt.Fprint(os.Stderr, clear, line)
			}
			fmt.Fprint(os.Stderr, clear)
		}()
	}
	return o, nil
}

// phase says what comes next.
func (o *observer) phase(name string) {
	o.trace.Phase(name)
	o.show(name)
}

// show shows it, and does not trace it.
func (o *observer) show(name string) { o.send(name + " …") }

func (o *observer) send(line string) {
	select {
	case o.lines <- line: // never, if there is no terminal
	default:
	}
}

// say prints a line on standard error that stays.
func (o *observer) say(line string) {
	if o.lines == nil {
		fmt.Fprintln(os.Stderr, line)
		return
	}
	o.lines <- line + "\n" // nobody is stopped yet
}

// end takes the line away and writes the trace. Nobody is stopped any more.
func (o *observer) end() error {
	if o.ended {
		return nil
	}
	o.ended = true
	if o.lines != nil {
		close(o.lines)
		<-o.over
	}
	if o.file == nil {
		return nil
	}
	defer o.file.Close()
	if err := o.trace.Write(o.file); err != nil {
		return fmt.Errorf("--trace: %w", err)
	}
	return nil
}
