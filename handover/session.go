package handover

import (
	"errors"
	"fmt"
	"time"

	"spfs/internal/bytetext"
)

// ErrNoDaemon: no process of the tree serves a FUSE connection.
var ErrNoDaemon = errors.New("no FUSE daemon is in the tree")

// StopOptions says what [Stop] stops.
type StopOptions struct {
	Root         int           // pid of the tree's root; its descendants belong to it
	Timeout      time.Duration // for everyone to stop, requests in flight included
	LeaveRunning bool          // the tree will go on: nothing is asked to be forgotten for good
}

// CRIU is what CRIU must be told to dump a stopped tree.
type CRIU struct {
	FreezeCgroup string // --freeze-cgroup: the directory of the frozen cgroup

	// Temporary tells that the tree was moved to that cgroup for the dump:
	// --manage-cgroups=ignore, at dump and restore.
	Temporary bool

	// External are values of --external: "file[MNT:INO]", in hexadecimal. Of
	// files on the FUSE mounts, so that CRIU does not look for their names;
	// and of the placeholders.
	External []string
}

// File is a file of a FUSE mount that the tree has open, mapped, or is in.
type File struct {
	Key        string        // "file[MNT:INO]", what CRIU's images call it
	MountID    int           // as in mountinfo
	Ino        uint64        // st_ino
	Connection uint64        // of Record.ID
	Node       uint64        // of Node.ID
	Path       bytetext.Text // as the tree sees it; with several names, one of them
	Mode       uint32        // st_mode
	Unlinked   bool          // no name leads to it, Path neither
}

// Session is a tree that is stopped: clients, daemons and all others are
// frozen, the daemons' /dev/fuse descriptors are replaced by placeholders, and
// stand-ins answer what is asked of the mounts. It ends with [Session.Resume]
// or [Session.Killed]. Its methods are for one goroutine at a time.
type Session struct {
	s       *stopper
	criu    CRIU
	files   []File
	records []*Record
}

// CRIU returns what CRIU must be told.
func (s *Session) CRIU() CRIU { return s.criu }

// Records returns what is remembered of each connection. It is complete when
// [Session.Check] has returned.
func (s *Session) Records() []*Record { return s.records }

// Files returns every file of the mounts that the images may name.
func (s *Session) Files() []File { return s.files }

// Check says, after CRIU has looked at everything, whether the images and the
// records are good: that nobody wrote to the mounts meanwhile.
func (s *Session) Check() error {
	var errs []error
	for _, a := range s.s.standIns {
		errs = append(errs, a.failure())
	}
	return errors.Join(errs...)
}

// Resume puts everything back and lets the tree run on: daemons first. The
// tree is not frozen any more when it returns, whatever the error.
func (s *Session) Resume() error {
	if s.s == nil {
		return nil
	}
	err := s.s.undo()
	s.s = nil
	if err != nil {
		return fmt.Errorf("putting the tree back: %w", err)
	}
	return nil
}

// Killed ends a session whose tree was killed.
func (s *Session) Killed() error {
	if s.s == nil {
		return nil
	}
	err := s.s.lost()
	s.s = nil
	return err
}
