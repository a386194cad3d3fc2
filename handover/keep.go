package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
)

// What a keeper is told to do.
const (
	toHold   = "hold"   // go on: the journal is in good hands
	toCheck  = "check"  //
	toResume = "resume" // and end
	toLose   = "lose"   // the tree is gone; end
)

// Descriptors that a keeper is started with.
const (
	keeperLine  = 3 // orders and reports
	keeperFiles = 4 // the files of a journal
)

// Keep is what the process "PROGRAM keep" does: it stops a tree on behalf of
// the process that has started it, holds it, and puts it back when it is told
// to, or when that process dies.
func Keep(ctx context.Context) error {
	// It ends with its work, not with the terminal or by a kind request.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	line, files := os.NewFile(keeperLine, "orders"), os.NewFile(keeperFiles, "files")
	if line == nil || files == nil {
		return errors.New("this is for spfs itself to be started as")
	}
	unix.CloseOnExec(keeperLine)
	unix.CloseOnExec(keeperFiles)
	k := &keeping{line: newLine(line), files: files, orders: make(chan order), gone: make(chan struct{})}
	first, err := k.line.order()
	if err != nil || first.Stop == nil {
		return fmt.Errorf("no order to stop anything came: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go k.listen(cancel)
	fusestate.Preload()
	s, err := stopTree(ctx, *first.Stop, k.foreseen, k.hold)
	if err != nil {
		return errors.Join(k.line.send(report{Error: wire(err)}))
	}
	told := s.tell()
	if err := k.line.send(report{Stopped: &told}); err != nil {
		return s.undoWithin(orphanTime)
	}
	return k.obey(s)
}

// keeping is a keeper's side.
type keeping struct {
	line   *line
	files  *os.File
	orders chan order
	gone   chan struct{} // closed when whoever gives the orders is gone
}

// listen receives orders until there are no more.
func (k *keeping) listen(cancel func()) {
	defer cancel()
	defer close(k.gone)
	for {
		o, err := k.line.order()
		if err != nil {
			return
		}
		k.orders <- o
	}
}

// foreseen passes on what CRIU will have to be told.
func (k *keeping) foreseen(tell CRIU) error { return k.line.send(report{Foreseen: &tell}) }

// hold gives the journal away.
func (k *keeping) hold(j *journal) error {
	if err := sendFiles(k.files, j.files); err != nil {
		return err
	}
	if err := k.line.send(report{Journal: j}); err != nil {
		return err
	}
	select {
	case <-k.gone:
		return errOrphan
	case <-k.orders:
		return nil
	}
}

// errOrphan: the process that has ordered a stop is gone.
var errOrphan = errors.New("the process that gave the order is gone")

// obey does what it is told about a stopped tree, until that is over.
func (k *keeping) obey(s *stopper) error {
	for {
		select {
		case <-k.gone:
			return errors.Join(errOrphan, s.undoWithin(orphanTime))
		case o := <-k.orders:
			switch o.Do {
			case toCheck:
				// Who can't be told is gone, which is seen next.
				_ = k.line.send(report{Error: wire(s.check())})
			case toResume:
				return k.line.send(report{Error: wire(s.undo())})
			case toLose:
				return k.line.send(report{Error: wire(s.lost())})
			}
		}
	}
}

// ended says whether an error is that of a line whose other end is closed.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
