package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/fdpass"
	"spfs/internal/ptrace"
)

// order is what a keeper is told.
type order struct {
	Stop *StopOptions `json:",omitempty"`
	Do   string       `json:",omitempty"`
}

// report is what a keeper answers: one of these.
type report struct {
	Error    *wireError `json:",omitempty"`
	Foreseen *CRIU      `json:",omitempty"`
	Journal  *journal   `json:",omitempty"`
	Stopped  *stopped   `json:",omitempty"`
}

// line is one end of what orders and reports are sent through.
type line struct {
	file    *os.File
	encoder *json.Encoder
	decoder *json.Decoder
}

func newLine(f *os.File) *line {
	return &line{f, json.NewEncoder(f), json.NewDecoder(bufio.NewReaderSize(f, 1<<16))}
}

func (l *line) send(v any) error { return l.encoder.Encode(v) }

func (l *line) order() (o order, err error)   { return o, l.decoder.Decode(&o) }
func (l *line) report() (r report, err error) { return r, l.decoder.Decode(&r) }

// hangUp says that no more orders come. Reports still can.
func (l *line) hangUp() {
	if raw, err := l.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
}

func (l *line) close() { l.file.Close() }

// wireError is an error on its way, with what callers decide upon.
type wireError struct {
	Text  string
	Kinds []string `json:",omitempty"`
}

// kinds are the errors that can be told from others after their way.
var kinds = map[string]error{
	"no daemon": ErrNoDaemon, "own mount": ErrOwnMount, "circle": ErrCircle, "outside": ErrOutside, "direct": ErrDirect,
	"timeout": ptrace.ErrTimeout, "deadline": context.DeadlineExceeded, "canceled": context.Canceled, "gone": ptrace.ErrGone,
}

// wire prepares an error to be sent; nil stays nil.
func wire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Text: err.Error()}
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			w.Kinds = append(w.Kinds, name)
		}
	}
	return w
}

func (w *wireError) err() error { return &sentError{w} }

// sentError is an error that another process had.
type sentError struct{ w *wireError }

func (e *sentError) Error() string { return e.w.Text }

func (e *sentError) Unwrap() (errs []error) {
	for _, name := range e.w.Kinds {
		if kind := kinds[name]; kind != nil {
			errs = append(errs, kind)
		}
	}
	return errs
}

// sendFiles sends descriptions, as many messages as it takes.
func sendFiles(socket *os.File, files []*os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	for len(files) > 0 {
		n := min(len(files), fdpass.MaxFiles)
		fds := make([]int, n)
		for i, f := range files[:n] {
			file, err := f.SyscallConn()
			if err == nil {
				err = file.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return err
			}
		}
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.Sendmsg(int(fd), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		}); cerr != nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("sending %d descriptions: %w", n, err)
		}
		files = files[n:]
	}
	return nil
}

// receiveFiles receives that many descriptions.
func receiveFiles(socket *os.File, count int) ([]*os.File, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var files []*os.File
	buf, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4*fdpass.MaxFiles))
	for len(files) < count {
		var n int
		if cerr := raw.Control(func(fd uintptr) {
			_, n, _, _, err = unix.Recvmsg(int(fd), buf, control, unix.MSG_CMSG_CLOEXEC)
		}); cerr != nil {
			err = cerr
		}
		var fds []int
		if err == nil {
			fds, err = rights(control[:n])
		}
		if err == nil && len(fds) == 0 {
			err = errors.New("none came")
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "of the tree"))
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("receiving %d descriptions: %w", count, err)
		}
	}
	return files, nil
}

func rights(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		all = append(all, fds...)
	}
	return all, nil
}
