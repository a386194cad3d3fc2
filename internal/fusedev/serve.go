package fusedev

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is that of the page cache, in bytes.
const PageSize = 4096

// Room for the headers around MaxWrite bytes of data: a page in front, so
// that the data of a WRITE and of a READ begin on a page (O_DIRECT needs it),
// and a page behind for names and extensions.
const (
	bufferSize = MaxWrite + 2*PageSize

	writeHeader = 80                              // fuse_in_header + fuse_write_in
	readHeader  = int(unsafe.Sizeof(outHeader{})) // fuse_out_header
)

// Buffers is the room that one request and its answer need. A server that
// handles a request outside of Serve's handler gets its own with GetBuffers.
type Buffers struct {
	in, out []byte
}

var bufferPool = sync.Pool{New: func() any {
	return &Buffers{
		in:  alignedAt(writeHeader),
		out: alignedAt(readHeader),
	}
}}

// alignedAt returns bufferSize bytes of which the one behind a header of that
// size lies on a page.
func alignedAt(header int) []byte {
	b := make([]byte, bufferSize+PageSize)
	skip := (PageSize - (int(uintptr(unsafe.Pointer(&b[0])))+header)%PageSize) % PageSize
	return b[skip : skip+bufferSize : skip+bufferSize]
}

// GetBuffers returns buffers for one request; Put gives them back.
func GetBuffers() *Buffers { return bufferPool.Get().(*Buffers) }

// Put gives the buffers back. Nothing in them may be used after.
func (b *Buffers) Put() { bufferPool.Put(b) }

// Copy puts a request into the buffers, with the data of a WRITE on a page.
func (b *Buffers) Copy(req Request) Request { return Request(b.in[:copy(b.in, req)]) }

// Out is room for any answer, with the data of a READ on a page.
func (b *Buffers) Out() []byte { return b.out }

// readers counts the goroutines that wait in read(2).
type readers struct {
	idle atomic.Int32
	all  sync.WaitGroup
	end  sync.Once // closes Conn.ended

	mu  sync.Mutex
	err error // the first that was not the connection's end
}

// maxIdle is how many goroutines wait for requests at once. More of them
// only take turns on the kernel's queue.
var maxIdle = int32(max(2, runtime.GOMAXPROCS(0)))

// Serve reads requests until the connection ends (the last mount of it is
// gone, or it was aborted) and hands each to handle, on several goroutines.
// The request and the buffers are handle's until it returns. However long
// handlers take, another goroutine reads on. Serve returns when the
// connection has ended and all handlers have returned; an error is one of
// reading.
func (c *Conn) Serve(handle func(Request, *Buffers)) error {
	for range maxIdle {
		c.startReader(handle)
	}
	c.readers.all.Wait()
	return c.readers.err
}

func (c *Conn) startReader(handle func(Request, *Buffers)) {
	c.readers.idle.Add(1) // before it runs: whoever starts it sees it
	c.readers.all.Add(1)
	go func() {
		defer c.readers.all.Done()
		if err := c.read(handle); err != nil {
			c.readers.mu.Lock()
			c.readers.err = errors.Join(c.readers.err, err)
			c.readers.mu.Unlock()
		}
	}()
}

func (c *Conn) read(handle func(Request, *Buffers)) error {
	b := GetBuffers()
	defer b.Put()
	for {
		n, err := unix.Read(c.fd, b.in)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			// ENOENT: the request was given up while it was copied
			// (fs/fuse/dev.c fuse_dev_do_read).
			continue
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			c.readers.idle.Add(-1)
			c.readers.end.Do(func() { close(c.ended) })
			return nil
		default:
			c.readers.idle.Add(-1)
			return fmt.Errorf("reading from the FUSE connection: %w", err)
		}
		if c.readers.idle.Add(-1) == 0 {
			c.startReader(handle)
		}
		req := Request(b.in[:n])
		if req.valid() {
			handle(req, b)
		}
		if c.readers.idle.Add(1) > maxIdle {
			c.readers.idle.Add(-1)
			return nil
		}
	}
}
