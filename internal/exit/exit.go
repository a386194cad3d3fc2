package exit

import (
	"errors"
	"fmt"
	"io"
)

// The exit statuses of every command.
const (
	Done    = 0 // it was done
	Failed  = 1 // it failed, and nothing was changed
	Misused = 2 // the command line was wrong
	Refused = 3 // refused before anything was stopped
)

// statusError carries the exit status that an error calls for.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// Usage makes an error of status [Misused] out of a format and arguments.
func Usage(format string, args ...any) error {
	return &statusError{Misused, fmt.Errorf(format, args...)}
}

// Refuse makes err an error of status [Refused]. A nil err stays nil.
func Refuse(err error) error {
	if err == nil {
		return nil
	}
	return &statusError{Refused, err}
}

// Status returns the exit status for err: [Done] for nil, the status it
// carries anywhere in its tree, [Failed] otherwise.
func Status(err error) int {
	if err == nil {
		return Done
	}
	var s *statusError
	if errors.As(err, &s) {
		return s.status
	}
	return Failed
}

// Report prints err to w as one line, program first, and returns its exit
// status. A nil err prints nothing.
func Report(w io.Writer, program string, err error) int {
	if err != nil {
		fmt.Fprintf(w, "%s: %v\n", program, err)
	}
	return Status(err)
}
