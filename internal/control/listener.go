package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Handler is a mount that can be asked. Its methods may be called at the same
// time; a context ends when the client that asks has gone.
type Handler interface {
	Status() *Status
	Stub(context.Context) error
	// Proxy forwards to a directory, which is the caller's to close.
	Proxy(ctx context.Context, dir *os.File) error
	// Deleted makes a file one that is deleted, while it is open. The
	// descriptors are the handler's to close, also if it fails.
	Deleted(ctx context.Context, path string, file *os.File, open []*os.File) error
	// Umount takes the mount away, in use or not if force. The daemon's end
	// follows.
	Umount(ctx context.Context, force bool) error
}

// Listener answers on the socket of one mount.
type Listener struct {
	socket  *net.UnixListener
	path    string
	inode   uint64 // of the socket's file: tells it from a successor's
	handler Handler
	clients sync.WaitGroup
	cancel  context.CancelFunc
	ctx     context.Context
}

// Listen makes the socket for the mount dev, which must be the caller's: a
// socket that is there already is one that a daemon left when it was killed.
// Requests are answered from Serve on.
func Listen(dev uint64, h Handler) (*Listener, error) {
	dir, err := openDirectory()
	if err != nil {
		return nil, err
	}
	defer dir.Close() // and the lock with it

	path := socketPath(dev)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing a stale control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	var st unix.Stat_t
	err = unix.Fchmodat(int(dir.Fd()), filepath.Base(path), 0o600, 0)
	if err == nil {
		err = unix.Lstat(path, &st)
	}
	if err != nil {
		os.Remove(path)
		l.Close()
		return nil, fmt.Errorf("protecting the control socket %s: %w", path, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Listener{socket: l, path: path, inode: st.Ino, handler: h, ctx: ctx, cancel: cancel}, nil
}

// Serve answers until Close.
func (l *Listener) Serve() error {
	for {
		c, err := l.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting on %s: %w", l.path, err)
		}
		l.clients.Add(1)
		go func() {
			defer l.clients.Done()
			defer c.Close()
			l.serve(c)
		}()
	}
}

// Close removes the socket, unless another daemon has put its own there
// since, tells those who are being served to give up, and waits for them.
func (l *Listener) Close() error {
	err := l.remove()
	l.socket.Close()
	l.cancel()
	l.clients.Wait()
	return err
}

func (l *Listener) remove() error {
	dir, err := openDirectory()
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Lstat(l.path, &st); err != nil || st.Ino != l.inode {
		return nil
	}
	if err := os.Remove(l.path); err != nil {
		return fmt.Errorf("removing the control socket: %w", err)
	}
	return nil
}

// serve answers one client, until it goes.
func (l *Listener) serve(c *net.UnixConn) {
	if uid, err := peer(c); err != nil || uid != uint32(os.Geteuid()) {
		return
	}
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	stop := context.AfterFunc(l.ctx, func() { c.CloseRead() })
	defer stop()

	// One goroutine reads ahead, to see a client go while it is served.
	type message struct {
		line []byte
		fds  []*os.File
		err  error
	}
	in := make(chan message)
	go func() {
		defer cancel()
		defer close(in)
		r := lineReader{conn: c}
		defer r.closeFDs()
		for {
			line, fds, err := r.read()
			if err != nil && !errors.Is(err, errTooLong) {
				return
			}
			select {
			case in <- message{line, fds, err}:
			case <-ctx.Done():
				closeAll(fds)
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for m := range in {
		answer := reply{}
		if m.err != nil {
			answer.Error = m.err.Error()
			closeAll(m.fds)
		} else {
			answer = l.answer(ctx, m.line, m.fds)
		}
		b, err := json.Marshal(answer)
		if err != nil {
			return
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

func (l *Listener) answer(ctx context.Context, line []byte, fds []*os.File) reply {
	req, err := parseRequest(line, len(fds))
	if err != nil {
		closeAll(fds)
		return reply{Error: err.Error()}
	}
	if req.Command != cmdDeleted {
		defer closeAll(fds)
	}
	var a reply
	switch req.Command {
	case cmdStatus:
		a.Status = l.handler.Status()
	case cmdStub:
		err = l.handler.Stub(ctx)
	case cmdProxy:
		err = l.handler.Proxy(ctx, fds[0])
	case cmdDeleted:
		err = l.handler.Deleted(ctx, string(req.Path), fds[0], fds[1:])
	case cmdUmount:
		err = l.handler.Umount(ctx, req.Force)
	}
	if err != nil {
		a.Error = err.Error()
		a.Refused = errors.Is(err, ErrRefused)
	}
	return a
}

// peer is the user at the other end.
func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

var errTooLong = fmt.Errorf("request is longer than %d bytes", maxRequest)

// lineReader reads lines, each with the descriptors that came along.
type lineReader struct {
	conn *net.UnixConn
	buf  []byte
	fds  []*os.File
}

// maxFDs is how many descriptors one message may bring, as many as the kernel
// lets through in one (include/net/scm.h SCM_MAX_FD); it closes what does not fit.
const maxFDs = 253

func (r *lineReader) read() ([]byte, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	for {
		if i := bytes.IndexByte(r.buf, '\n'); i >= 0 {
			line, fds := r.buf[:i], r.fds
			r.buf, r.fds = bytes.Clone(r.buf[i+1:]), nil
			return line, fds, nil
		}
		if len(r.buf) > maxRequest {
			return nil, nil, errTooLong
		}
		chunk := make([]byte, maxRequest)
		n, oobn, _, _, err := r.conn.ReadMsgUnix(chunk, oob)
		if err != nil {
			return nil, nil, err
		}
		if err := r.takeFDs(oob[:oobn]); err != nil {
			return nil, nil, err
		}
		if n == 0 {
			return nil, nil, io.EOF
		}
		r.buf = append(r.buf, chunk[:n]...)
		if len(r.fds) > maxFDs {
			return nil, nil, errTooLong
		}
	}
}

func (r *lineReader) takeFDs(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			r.fds = append(r.fds, os.NewFile(uintptr(fd), fdPath(fd)))
		}
	}
	return nil
}

func (r *lineReader) closeFDs() { closeAll(r.fds) }

// fdPath is what a descriptor is called in this process's view.
func fdPath(fd int) string {
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Sprintf("descriptor %d", fd)
	}
	return p
}

func closeAll(fds []*os.File) {
	for _, f := range fds {
		f.Close()
	}
}
