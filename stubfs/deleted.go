package stubfs

import (
	"context"
	"errors"
	"os"
)

// Deleted makes the file at path, below the mount, one that is deleted while it
// is open: who has it open sees it so, and its content is that of file from now
// on, whatever directory the gate is opened onto. open are descriptions of file,
// one for each time that it is open, for the same access; where one is missing,
// file is opened again. All of them are the mount's from now on, and none is
// closed before the gate opens: what they are of may not answer before.
//
// It is for a gate that is shut and has not been used since: a request that
// waits in the directory of the name would keep the kernel from forgetting that.
// A path that nobody uses is no error.
func (f *FS) Deleted(ctx context.Context, path string, file *os.File, open []*os.File) error {
	f.modeMu.Lock()
	defer f.modeMu.Unlock()
	t := f.target()
	if t == nil || f.gate.isOpen() {
		for _, file := range append([]*os.File{file}, open...) {
			file.Close()
		}
		return errors.New("the gate is not shut onto a directory")
	}
	f.forgetMu.Lock()
	node, parent, base, err := t.Deleted(path, file, open)
	f.forgetMu.Unlock()
	if err != nil || node == 0 {
		return err
	}
	told := make(chan error, 1)
	go func() { told <- f.conn.DeleteEntry(parent, node, base) }()
	select {
	case err := <-told:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
