package fuseinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"spfs/internal/fusedev"
)

// KernelOffer is what this kernel offers by INIT. It is asked with a connection
// that is there for nothing else: to answer the INIT of another one with what
// that kernel does not offer would end it.
func KernelOffer(ctx context.Context) (o Offer, err error) {
	conn, mount, err := fusedev.Mount("spfs")
	if err != nil {
		return o, err
	}
	err = serveINIT(ctx, conn, func(req fusedev.Request) error {
		o = OfferOf(req)
		return nil
	})
	return o, errors.Join(err, mount.Close(), conn.Close())
}

// AnswerINIT answers the INIT of a connection that was just mounted, with t, in
// the place of a daemon that has device too, and had its INIT long ago. Until it
// is answered the kernel sends nothing else. The daemon must not read meanwhile:
// it may get the INIT, and take it for an error.
func AnswerINIT(ctx context.Context, device *os.File, t *Terms) error {
	own, err := fusedev.Clone(device)
	if err != nil {
		return err
	}
	err = serveINIT(ctx, own, func(req fusedev.Request) error {
		out, _, err := t.Answer(OfferOf(req))
		if err != nil {
			return err
		}
		return own.Reply(req, unsafe.Slice((*byte)(unsafe.Pointer(out)), unsafe.Sizeof(*out)))
	})
	return errors.Join(err, own.Close())
}

// serveINIT hands the first request of a connection to handle, and reads no
// other.
func serveINIT(ctx context.Context, conn *fusedev.Conn, handle func(fusedev.Request) error) error {
	stop, err := fusedev.NewStop()
	if err != nil {
		return err
	}
	told := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(told)
		stop.Tell()
	})
	handled := false
	var failed error
	ended, err := conn.ServeUntil(stop, PlainMaxWrite, func(req fusedev.Request) {
		stop.Tell()
		handled = true
		if op := req.Opcode(); op != fusedev.OpInit {
			failed = fmt.Errorf("the kernel's first request is %v, not INIT", op)
			return
		}
		failed = handle(req)
	})
	if !forget() {
		<-told
	}
	err = errors.Join(err, failed, stop.Close())
	switch {
	case err != nil || handled:
		return err
	case ended:
		return errors.New("the FUSE connection has ended")
	}
	return fmt.Errorf("waiting for INIT: %w", context.Cause(ctx))
}
