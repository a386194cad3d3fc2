package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"spfs/internal/bytetext"
)

// Status is what a mount is doing.
type Status struct {
	Mode       string    `json:"mode"`          // "stub" or "proxy"
	Dir        string    `json:"dir,omitempty"` // as the daemon sees it; of a stub, the last it was a proxy of
	Mountpoint string    `json:"mountpoint"`    // where it was mounted
	Device     string    `json:"device"`        // MAJOR:MINOR, as in mountinfo
	PID        int       `json:"pid"`           // of the daemon
	Since      time.Time `json:"since"`         // of the mode
	Held       []Held    `json:"held"`          // in order of arrival; never null
}

// The modes of a mount.
const (
	ModeStub  = "stub"
	ModeProxy = "proxy"
)

// Held is a request that waits in a stub.
type Held struct {
	Op     string    `json:"op"` // "LOOKUP"
	Node   uint64    `json:"node"`
	Path   string    `json:"path,omitempty"` // from the mount point, with a slash; empty if not known
	PID    int       `json:"pid,omitempty"`  // 0: no process waits, or none that is visible
	TID    int       `json:"tid,omitempty"`
	Comm   string    `json:"comm,omitempty"`
	Since  time.Time `json:"since"`
	Unique uint64    `json:"unique"` // the request's number on its connection
}

// ErrRefused is wrapped by what a daemon refuses because of what was asked,
// not because it failed.
var ErrRefused = errors.New("refused")

// command is a request's first word.
type command string

const (
	cmdStatus command = "status"
	cmdStub   command = "stub"
	cmdProxy  command = "proxy" // with a descriptor
	cmdUmount command = "umount"
	// with a descriptor of the file, and those of what it is open by
	cmdDeleted command = "deleted"
)

// request is one line to a daemon.
type request struct {
	Command command `json:"command"`
	Force   bool    `json:"force,omitempty"` // of umount: though it is in use

	Path bytetext.Text `json:"path,omitempty"` // of deleted: below the mount
}

// reply is one line from a daemon.
type reply struct {
	Error   string  `json:"error,omitempty"`
	Refused bool    `json:"refused,omitempty"`
	Status  *Status `json:"status,omitempty"`
}

// Bounds of a line, in bytes. A reply lists every request held.
const (
	maxRequest = 32 << 10 // a path may be four times its length: bytetext
	maxPath    = 4 << 10
	maxReply   = 256 << 20
)

// parseRequest reads one line, without its newline, and the number of
// descriptors that came with it.
func parseRequest(line []byte, fds int) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, fmt.Errorf("request is not understood: %w", err)
	}
	least, most := 0, 0
	switch r.Command {
	case cmdStatus, cmdStub, cmdUmount:
	case cmdProxy:
		least, most = 1, 1
	case cmdDeleted:
		least, most = 1, maxFDs
		if r.Path == "" || len(r.Path) > maxPath {
			return request{}, fmt.Errorf("%s takes a path", r.Command)
		}
	default:
		return request{}, fmt.Errorf("unknown command %q", r.Command)
	}
	if fds < least || fds > most {
		return request{}, fmt.Errorf("%s takes %d to %d descriptors, not %d", r.Command, least, most, fds)
	}
	return r, nil
}

// err returns what a daemon's reply says went wrong.
func (r reply) err() error {
	switch {
	case r.Error == "":
		return nil
	case r.Refused:
		return &refusal{r.Error}
	}
	return errors.New(r.Error)
}

// refusal is an error of the daemon's that wrapped ErrRefused there.
type refusal struct{ text string }

func (r *refusal) Error() string        { return r.text }
func (r *refusal) Is(target error) bool { return target == ErrRefused }

// Refuse makes an error that wraps ErrRefused out of a format and arguments.
func Refuse(format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...)}
}
