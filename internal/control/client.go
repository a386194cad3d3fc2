package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/bytetext"
)

// ErrNotServed says that no running spfs serves a mount.
var ErrNotServed = errors.New("not served by a running spfs")

// Client asks the daemon of one mount, one question at a time.
type Client struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

// Dial connects to the daemon of the mount with that st_dev. The error wraps
// ErrNotServed if there is none.
func Dial(dev uint64) (*Client, error) {
	path := socketPath(dev)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		return &Client{conn: c, in: bufio.NewReader(c)}, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("device %d:%d is %w", unix.Major(dev), unix.Minor(dev), ErrNotServed)
	}
	return nil, fmt.Errorf("asking the mount's daemon: %w", err)
}

// Close ends the conversation. What was being done for it is given up.
func (c *Client) Close() error { return c.conn.Close() }

// Status says what the mount is doing.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	r, err := c.ask(ctx, request{Command: cmdStatus})
	if err != nil {
		return nil, err
	}
	if r.Status == nil {
		return nil, errors.New("the mount's daemon gave no status")
	}
	return r.Status, nil
}

// Stub shuts the gate. It returns when every request that ran is answered and
// what the kernel had cached is dropped: whoever touches the mount waits. If
// ctx ends first, nothing has changed when it returns, unless the daemon does
// not answer at all.
func (c *Client) Stub(ctx context.Context) error {
	_, err := c.ask(ctx, request{Command: cmdStub})
	return err
}

// Proxy opens the gate onto dir, an open directory (O_PATH suffices), which
// stays the caller's. Files open under the former directory are opened again
// by name.
func (c *Client) Proxy(ctx context.Context, dir *os.File) error {
	_, err := c.ask(ctx, request{Command: cmdProxy}, dir)
	return err
}

// Deleted makes the file at path, below the mount, one that is deleted while it
// is open. From now on file is in its place, and each of open in that of one time
// that it is open, for the same access; those that one message does not hold are
// left out, and file is opened again for them. All of them stay the caller's.
// Only a mount that is a stub, and that nobody has used since, can do it.
func (c *Client) Deleted(ctx context.Context, path string, file *os.File, open []*os.File) error {
	all := append([]*os.File{file}, open...)
	_, err := c.ask(ctx, request{Command: cmdDeleted, Path: bytetext.Text(path)}, all[:min(len(all), maxFDs)]...)
	return err
}

// Shutdown unmounts, and ends the daemon; it returns when its socket is gone.
// A mount in use stays, and is an error.
func (c *Client) Shutdown(ctx context.Context) error { return c.umount(ctx, false) }

// ForceShutdown unmounts a mount that is in use, and ends the daemon: whoever
// waits, or touches the mount later, gets an error.
func (c *Client) ForceShutdown(ctx context.Context) error { return c.umount(ctx, true) }

func (c *Client) umount(ctx context.Context, force bool) error {
	if _, err := c.ask(ctx, request{Command: cmdUmount, Force: force}); err != nil {
		return err
	}
	// The daemon removes its socket, then hangs up (Listener.Close).
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.in.ReadByte(); ctx.Err() != nil {
		return fmt.Errorf("waiting for the mount's daemon to end: %w", errors.Join(context.Cause(ctx), err))
	}
	return nil
}

func (c *Client) ask(ctx context.Context, r request, files ...*os.File) (*reply, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("asking the mount's daemon for %s: %w", r.Command, err)
	}
	stop := context.AfterFunc(ctx, c.giveUp)
	defer stop()
	a, err := c.exchange(r, files)
	if err == nil {
		err = a.err()
		if err == nil || ctx.Err() == nil || errors.Is(err, ErrRefused) {
			return a, err
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("asking the mount's daemon for %s: %w", r.Command, err)
}

// lastWord is how long a daemon that is told to give up may take to say so.
const lastWord = 2 * time.Second

// giveUp tells the daemon that nothing more comes, upon which it gives up what
// it does. It still answers: that it has, or that it was done just then, which
// only it can know.
func (c *Client) giveUp() {
	c.conn.CloseWrite()
	c.conn.SetDeadline(time.Now().Add(lastWord))
}

func (c *Client) exchange(r request, files []*os.File) (*reply, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(append(b, '\n'), oob, nil); err != nil {
		return nil, err
	}
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended without an answer")
			}
			return nil, err
		}
		if len(line) > maxReply {
			return nil, errors.New("its answer is too long")
		}
	}
	var a reply
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("its answer is not understood: %w", err)
	}
	return &a, nil
}
