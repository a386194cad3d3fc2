package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// device is one that no mount has.
var device = unix.Mkdev(0xffe, 0xfffe)

// fake is a mount that does as it is told.
type fake struct {
	status Status
	wait   chan struct{} // if set, Stub waits for its client to go …
	late   bool          // … and is done all the same

	mu      sync.Mutex
	proxied string // content of the file "name" in the last directory
	err     error  // of Umount
	forced  bool
	deleted []string // path, and the contents of what is in its place
}

func (f *fake) Status() *Status { return &f.status }

func (f *fake) Stub(ctx context.Context) error {
	if f.wait != nil {
		<-ctx.Done()
		close(f.wait)
		if f.late {
			return nil
		}
		return ctx.Err()
	}
	return nil
}

func (f *fake) Proxy(_ context.Context, dir *os.File) error {
	fd, err := unix.Openat(int(dir.Fd()), "name", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "name")
	defer file.Close()
	b, err := io.ReadAll(file)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proxied = string(b)
	return err
}

func (f *fake) Deleted(_ context.Context, path string, file *os.File, open []*os.File) error {
	defer closeAll(append(open, file))
	var content []string
	for _, one := range append([]*os.File{file}, open...) {
		b, err := io.ReadAll(one)
		if err != nil {
			return err
		}
		content = append(content, string(b))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deleted = append([]string{path}, content...)
	return f.err
}

func (f *fake) Umount(_ context.Context, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forced = force
	return f.err
}

// fails sets what Umount answers.
func (f *fake) fails(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// saw returns what Proxy and Umount were asked last.
func (f *fake) saw() (proxied string, forced bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proxied, f.forced
}

// listen serves h in a directory of the test's own, and connects to it.
func listen(t *testing.T, h Handler) (*Listener, *Client) {
	t.Helper()
	directory = filepath.Join(t.TempDir(), "spfs")
	t.Cleanup(func() { directory = defaultDir })
	l, err := Listen(device, h)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve() }()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return l, c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestStatusTravelsWhole(t *testing.T) {
	want := Status{Mode: ModeStub, Mountpoint: "/mnt", Device: "0:45", PID: 7, Since: time.Unix(5, 0).UTC()}
	for i := range 10_000 {
		want.Held = append(want.Held, Held{Op: "LOOKUP", Path: "/x\n", PID: i, Comm: "a b", Unique: uint64(2 * i)})
	}
	_, c := listen(t, &fake{status: want})
	got, err := c.Status(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Held) != len(want.Held) || got.Held[9999] != want.Held[9999] || got.Since != want.Since {
		t.Errorf("got %d held, the last %+v", len(got.Held), got.Held[len(got.Held)-1])
	}
}

func TestDirectoryTravelsAsADescriptor(t *testing.T) {
	f := &fake{}
	_, c := listen(t, f)
	for _, content := range []string{"one", "two"} {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, "name"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		dir, err := OpenPath(path)
		if err != nil {
			t.Fatal(err)
		}
		// The name does not matter any more.
		if err := os.Rename(path, path+".moved"); err != nil {
			t.Fatal(err)
		}
		if err := c.Proxy(within(t), dir); err != nil {
			t.Error(err)
		}
		if got, _ := f.saw(); got != content {
			t.Errorf("read %q, want %q", got, content)
		}
		dir.Close()
	}
}

func TestDeletedFilesTravelAsDescriptors(t *testing.T) {
	f := &fake{}
	_, c := listen(t, f)
	var files []*os.File
	want := []string{"dir/na\xffme"}
	for i := range maxFDs + 3 { // more than one message holds
		path := filepath.Join(t.TempDir(), "file")
		content := strconv.Itoa(i)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files = append(files, file)
		if i < maxFDs {
			want = append(want, content)
		}
	}
	if err := c.Deleted(within(t), want[0], files[0], files[1:]); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.deleted, want) {
		t.Errorf("got %q, want %q", f.deleted, want)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	f := &fake{err: Refuse("it is %s", "busy")}
	_, c := listen(t, f)
	if err := c.Shutdown(within(t)); !errors.Is(err, ErrRefused) || err.Error() != "it is busy" {
		t.Errorf("Shutdown: %v", err)
	}
	if _, forced := f.saw(); forced {
		t.Error("Shutdown forces")
	}
	f.fails(errors.New("broken"))
	if err := c.ForceShutdown(within(t)); errors.Is(err, ErrRefused) || err == nil {
		t.Errorf("ForceShutdown: %v", err)
	}
	if _, forced := f.saw(); !forced {
		t.Error("ForceShutdown does not force")
	}
}

func TestShutdownWaitsForTheEndOfTheDaemon(t *testing.T) {
	l, c := listen(t, &fake{})
	done := make(chan error, 1)
	go func() { done <- c.Shutdown(within(t)) }()
	select {
	case err := <-done:
		t.Fatalf("it returned before: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClientThatGoesIsNoticed(t *testing.T) {
	f := &fake{wait: make(chan struct{})}
	_, c := listen(t, f)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Stub(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Stub: %v", err)
	}
	c.Close()
	<-f.wait
}

// What was done when the time was up is not said to have failed.
func TestDaemonHasTheLastWord(t *testing.T) {
	_, c := listen(t, &fake{wait: make(chan struct{}), late: true})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Stub(ctx); err != nil || ctx.Err() == nil {
		t.Errorf("Stub: %v, its context: %v", err, ctx.Err())
	}
}

// A daemon that says nothing, not even that it gives up, is not waited for.
func TestSilentDaemonIsNotWaitedFor(t *testing.T) {
	l, _ := listen(t, &fake{})
	l.Close()
	silent, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(device), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, err := Dial(device)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Stub(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stub: %v", err)
	}
}

func TestNobodyIsNotServed(t *testing.T) {
	l, _ := listen(t, &fake{})
	if devs, err := List(); err != nil || len(devs) != 1 || devs[0] != device {
		t.Errorf("List: %v, %v", devs, err)
	}
	l.Close()
	if _, err := os.Lstat(socketPath(device)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := Dial(device); !errors.Is(err, ErrNotServed) {
		t.Errorf("Dial without a socket: %v", err)
	}
	// A daemon that was killed leaves its socket.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(device), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if _, err := Dial(device); !errors.Is(err, ErrNotServed) {
		t.Errorf("Dial of a stale socket: %v", err)
	}
	next, err := Listen(device, &fake{})
	if err != nil {
		t.Fatalf("Listen in place of a stale socket: %v", err)
	}
	if err := RemoveStale(device); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socketPath(device)); err != nil {
		t.Errorf("the socket of a daemon that runs was removed: %v", err)
	}
	next.socket.Close() // as if it were killed
	if err := RemoveStale(device); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socketPath(device)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stale socket is still there: %v", err)
	}
}

func TestCloseLeavesASuccessorsSocket(t *testing.T) {
	old, _ := listen(t, &fake{})
	next, err := Listen(device, &fake{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	old.Close()
	if _, err := os.Lstat(socketPath(device)); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

func TestSocketIsItsOwnersOnly(t *testing.T) {
	listen(t, &fake{})
	for path, want := range map[string]os.FileMode{directory: 0o700, socketPath(device): 0o600} {
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, st.Mode().Perm(), want)
		}
	}
}

func TestLongOrWrongLinesAreAnsweredWithAnError(t *testing.T) {
	for name, line := range map[string]string{
		"too long":      strings.Repeat("x", 3*maxRequest) + "\n",
		"no JSON":       "hello\n",
		"no command":    "{}\n",
		"no descriptor": `{"command":"proxy"}` + "\n",
		"no file":       `{"command":"deleted","path":"a"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, c := listen(t, &fake{})
			c.conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.conn.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
			answer, err := c.in.ReadString('\n')
			if err != nil || !strings.HasPrefix(answer, `{"error":`) {
				t.Errorf("answer %q, %v", answer, err)
			}
		})
	}
}

func TestMountAtAsksTheTopmostMount(t *testing.T) {
	m, err := MountAt("/proc")
	if err != nil || m.FSType != "proc" {
		t.Errorf("MountAt(/proc) = %v, %v", m, err)
	}
	if _, err := MountAt(t.TempDir()); !errors.Is(err, ErrNotMountpoint) {
		t.Errorf("MountAt of a plain directory: %v", err)
	}
	if _, err := MountAt("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("MountAt of nothing: %v", err)
	}
}

func TestTableKeepsNamesFromTheTerminal(t *testing.T) {
	now := time.Unix(1000, 0)
	var b bytes.Buffer
	err := WriteTable(&b, []*Status{{
		Mode: ModeStub, Mountpoint: "/mnt", PID: 5, Since: now.Add(-90 * time.Second),
		Held: []Held{{Op: "LOOKUP", Path: "/a\x1b[2J", PID: 8, TID: 9, Comm: "cat", Since: now.Add(-1500 * time.Millisecond)}},
	}}, now)
	if err != nil {
		t.Fatal(err)
	}
	s := b.String()
	for _, want := range []string{"/mnt", "1m30s", "LOOKUP", `\x1b[2J`, "1.5s", "cat"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if strings.Contains(s, "\x1b") {
		t.Errorf("an escape sequence got through:\n%q", s)
	}
}

func TestSocketNames(t *testing.T) {
	if dev, ok := parseSocketName(socketName(device)); !ok || dev != device {
		t.Errorf("%q parsed as %d, %v", socketName(device), dev, ok)
	}
	for _, bad := range []string{"", "1:2", "1:2.sock.x", "x:2.sock", "01:2.sock"} {
		if _, ok := parseSocketName(bad); ok {
			t.Errorf("%q was taken for a socket's name", bad)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"command":"status"}`), 0)
	f.Add([]byte(`{"command":"proxy"}`), 1)
	f.Add([]byte(`{"command":"umount","force":true}`), 0)
	f.Fuzz(func(t *testing.T, line []byte, fds int) {
		r, err := parseRequest(line, fds)
		if err != nil {
			return
		}
		if (r.Command == cmdProxy) != (fds == 1) {
			t.Errorf("%q was accepted with %d descriptors", line, fds)
		}
	})
}

func FuzzParseMountID(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t4\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { parseMountID(b) })
}
