package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// HandOver is called when everything that is restored is open and nothing of
// it runs yet (CRIU's post-restore), and the daemon has its descriptors. When
// it returns without an error, the kernel has of each node and handle what the
// daemon gave and nothing made up, and only the daemon reads the connection.
// If it returns an error, the restore must be given up: the stand-in answers
// on, so that what hangs on the mount can be killed, until Close.
func (a *Adopted) HandOver(ctx context.Context) error {
	if err := a.handOver(ctx); err != nil {
		return fmt.Errorf("handing FUSE connection %d over: %w", a.rec.ID, err)
	}
	return nil
}

func (a *Adopted) handOver(ctx context.Context) error {
	if a.handed {
		return errors.New("it was handed over already")
	}
	s := a.stand
	if err := s.awaitReleased(ctx); err != nil {
		return err
	}
	if err := a.settleLookups(ctx); err != nil {
		return err
	}
	if err := s.awaitReleased(ctx); err != nil { // what settling has opened
		return err
	}
	if err := a.takeBack(); err != nil {
		return err
	}
	if err := s.await(ctx, func() bool { return len(s.marks) == 0 }); err != nil {
		return fmt.Errorf("waiting for the kernel to forget the marks of handles: %w", err)
	}
	for {
		if err := a.openUnused(); err != nil {
			return err
		}
		if err := s.failure(); err != nil {
			return err
		}
		// Whatever is asked from here on waits in the kernel for the daemon.
		s.pause()
		if !s.unused() {
			break
		}
		// The RELEASE of something that was opened for a look has come only
		// now, and the handle must not stay open in the daemon.
		if err := s.start(); err != nil {
			return err
		}
	}
	if err := s.settled(); err != nil {
		return errors.Join(err, s.start())
	}
	a.handed = true
	return s.end()
}

// unused is a file open on a handle that nobody took.
type unused struct {
	node uint64
	file *os.File
}

// openUnused opens a file on each handle that nothing restored has taken, to
// be closed when the daemon runs: it has them open, and must be told that
// nobody has any more.
func (a *Adopted) openUnused() error {
	a.stand.mu.Lock()
	left := a.stand.handles.left()
	a.stand.mu.Unlock()
	if len(left) == 0 {
		return nil
	}
	pins := make(map[uint64]*os.File)
	for _, p := range a.pins {
		pins[p.node] = p.file
	}
	// The stand-in knows the opens by their thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	for _, i := range left {
		h := &a.rec.Handles[i]
		a.stand.mu.Lock()
		a.stand.expect[tid] = i
		a.stand.mu.Unlock()
		var f *os.File
		var err error
		// Not with O_NONBLOCK, or os.File has it polled: a request to the
		// stand-in on a thread that keeps it from running.
		flags := int(h.Flags&^(unsaid|unix.O_NONBLOCK|unix.O_PATH)) | unix.O_CLOEXEC
		if h.Node == RootID {
			f, err = openAgain(a.mount.File(), flags)
		} else {
			f, err = openAgain(pins[h.Node], flags)
		}
		a.stand.mu.Lock()
		_, unasked := a.stand.expect[tid]
		delete(a.stand.expect, tid)
		a.stand.mu.Unlock()
		if err != nil {
			return fmt.Errorf("opening node %d for handle %#x, which nobody has: %w", h.Node, h.FH, err)
		}
		a.unused = append(a.unused, unused{h.Node, f})
		if unasked {
			return fmt.Errorf("opening node %d for handle %#x, which nobody has: the kernel did not ask for it", h.Node, h.FH)
		}
	}
	return nil
}

// openAgain opens what a descriptor that may be O_PATH is of.
func openAgain(f *os.File, flags int) (*os.File, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	fd, err := eintr.Get(func() (int, error) { return unix.Open(path, flags, 0) })
	if err != nil {
		return nil, fmt.Errorf("opening it again: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// takeBack makes the kernel ask the daemon for everything the next time: names,
// attributes, and the content of files of which something was read, for it may
// have been made up. Names that don't exist any more are gone with it, and so
// are those that never did.
func (a *Adopted) takeBack() error {
	s := a.stand
	s.mu.Lock()
	marked := make([]Name, 0, len(s.marked))
	for name := range s.marked {
		marked = append(marked, name)
	}
	read := make(map[uint64]bool)
	for id, k := range s.nodes {
		if k.read {
			read[id] = true
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, name := range marked {
		errs = append(errs, s.conn.InvalidateEntry(name.Parent, string(name.Name)))
	}
	for i := range a.rec.Nodes {
		n := &a.rec.Nodes[i]
		for _, name := range n.Names {
			errs = append(errs, s.conn.ExpireEntry(name.Parent, string(name.Name)))
		}
		if read[n.ID] {
			errs = append(errs, s.conn.InvalidateData(n.ID, 0, 0))
		} else {
			errs = append(errs, s.conn.InvalidateAttr(n.ID))
		}
	}
	for i := len(a.pins) - 1; i >= 0; i-- { // what is in a directory before it
		if p := a.pins[i]; p.gone {
			errs = append(errs, s.conn.InvalidateEntry(p.name.Parent, string(p.name.Name)))
		}
	}
	return errors.Join(errs...)
}

// unused tells whether there are handles that nobody has.
func (s *standIn) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.handles.left()) > 0
}

// settled says what the kernel has that the daemon did not give, if anything.
func (s *standIn) settled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if n := len(s.handles.madeUp); n != 0 {
		return fmt.Errorf("%d files are open by handles that were made up", n)
	}
	for id, k := range s.nodes {
		if id != RootID && k.given != k.owed() {
			return fmt.Errorf("node %d (%s) was looked up %d times, not %d", id, s.nameOf(id), k.given, k.owed())
		}
	}
	return nil
}
