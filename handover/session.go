package handover

import (
	"context"
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

	// Program is what "PROGRAM keep" makes a process of that calls [Keep];
	// empty: this program.
	Program string
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
//
// A keeper, a process of its own, holds the tree and puts it back if this
// process dies. If the keeper dies, this process puts it back.
type Session struct {
	keeper   *keeper // nil once the session has ended
	foreseen CRIU
	stopped
}

// stopped is what a keeper tells of a tree that it has stopped.
type stopped struct {
	Tell    CRIU
	Used    []File
	Records []*Record
}

// Stop stops a tree that has its own FUSE daemons. If it fails the tree runs
// on as before. The error is [ErrNoDaemon] if there is none.
func Stop(ctx context.Context, o StopOptions) (*Session, error) {
	s, err := Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.Await(); err != nil {
		return nil, err
	}
	return s, nil
}

// Begin begins what [Stop] does, and returns when it can be foreseen what CRIU
// will have to be told. [Session.Await] must be called before anything else.
func Begin(ctx context.Context, o StopOptions) (*Session, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	k, err := startKeeper(o.Program)
	if err != nil {
		return nil, err
	}
	s := &Session{keeper: k}
	if err = k.begin(ctx, o); err == nil {
		var r report
		if r, err = k.next(); err == nil && r.Foreseen == nil {
			err = errors.New("the keeper foresees nothing")
		}
		if err == nil {
			s.foreseen = *r.Foreseen
			return s, nil
		}
	}
	k.release()
	return nil, errors.Join(err, k.close())
}

// Foreseen is what CRIU will probably have to be told when the tree is stopped.
// It is empty if that could not be seen.
func (s *Session) Foreseen() CRIU { return s.foreseen }

// Await waits until the tree is stopped. If it returns an error, the tree runs
// on as before, and the session is over.
func (s *Session) Await() error {
	k := s.keeper
	defer k.release()
	r, err := k.next()
	if err == nil && r.Stopped == nil {
		err = errors.New("the keeper does not say that the tree is stopped")
	}
	if err != nil {
		s.keeper = nil
		return errors.Join(err, k.close())
	}
	s.stopped = *r.Stopped
	return nil
}

// CRIU returns what CRIU must be told.
func (s *Session) CRIU() CRIU { return s.stopped.Tell }

// Records returns what is remembered of each connection.
func (s *Session) Records() []*Record { return s.stopped.Records }

// Files returns every file of the mounts that the images may name.
func (s *Session) Files() []File { return s.stopped.Used }

// Check says, after CRIU has looked at everything, whether the images and the
// records are good: that nobody wrote to the mounts meanwhile.
func (s *Session) Check() error {
	if s.keeper == nil {
		return errors.New("the tree is not stopped any more")
	}
	_, err := s.keeper.ask(toCheck)
	return err
}

// Resume puts everything back and lets the tree run on: daemons first. The
// tree is not frozen any more when it returns, whatever the error.
func (s *Session) Resume() error { return s.end(toResume, "putting the tree back") }

// Killed ends a session whose tree was killed.
func (s *Session) Killed() error { return s.end(toLose, "after the end of the tree") }

func (s *Session) end(what, doing string) error {
	if s.keeper == nil {
		return nil
	}
	if what == toLose {
		// Nothing is to be put back. As long as a device is open anywhere, its
		// connection is not over, and what the keeper closes would ask it.
		s.keeper.dropJournal()
	}
	_, err := s.keeper.ask(what)
	err = errors.Join(err, s.keeper.close())
	s.keeper = nil
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
