package proxyfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The tests mount, so they run in a mount namespace of their own. Programs
// that use the mount as another process or user would are functions of this
// binary (see helpers).
const (
	inNamespace = "PROXYFS_TEST_NAMESPACE"
	helperName  = "PROXYFS_TEST_HELPER"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(helperName); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "mount namespace for the tests (they need root):", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helpers are the programs that tests start, by name.
var helpers = map[string]func(args []string) error{}

// helperCommand is a helper to be started, as the given user and groups.
func helperCommand(uid, gid uint32, groups []uint32, name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperName+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 || gid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}
	}
	return cmd
}

// runHelper runs a helper to its end, as root.
func runHelper(t *testing.T, name string, args ...string) {
	t.Helper()
	runHelperAs(t, 0, 0, name, args...)
}

func runHelperAs(t *testing.T, uid, gid uint32, name string, args ...string) {
	t.Helper()
	out, err := helperCommand(uid, gid, nil, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v as %d: %v\n%s", name, args, uid, err, out)
	}
}

// mounted is a directory shown by an FS on a mount point.
type mounted struct {
	*FS
	dir, mnt string
	given    *os.File // what New got
	server   *fuse.Server
}

// mount shows a new directory on a new mount point until the test ends.
func mount(t *testing.T, opts Options) *mounted {
	t.Helper()
	top := openTemp(t)
	return mountDir(t, filepath.Join(top, "dir"), filepath.Join(top, "mnt"), opts)
}

// openTemp makes a temporary directory that any user may walk through.
func openTemp(t *testing.T) string {
	t.Helper()
	top, err := os.MkdirTemp("", "proxyfs")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	check(t, os.Chmod(top, 0o755))
	return top
}

func mountDir(t *testing.T, dir, mnt string, opts Options) *mounted {
	t.Helper()
	for _, d := range []string{dir, mnt} {
		check(t, os.MkdirAll(d, 0o755))
	}
	given := openDir(t, dir)
	fs, err := New(given, opts)
	check(t, err)
	mo := &fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, DirectMountFlags: unix.MS_MGC_VAL,
		Options: []string{"default_permissions"}, Name: "proxyfs", FsName: "test",
	}
	Configure(mo)
	server, err := fuse.NewServer(fs, mnt, mo)
	check(t, err)
	served := make(chan struct{})
	go func() { server.Serve(); close(served) }()
	check(t, server.WaitMount())
	m := &mounted{fs, dir, mnt, given, server}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
		select {
		case <-served:
		case <-time.After(30 * time.Second):
			t.Error("the mount is still in use half a minute after the test")
			return
		}
		check(t, fs.Close())
	})
	return m
}

// retarget shows another directory, and makes the kernel forget what it cached,
// as whoever calls Retarget must.
func (m *mounted) retarget(t *testing.T, dir string) {
	t.Helper()
	check(t, m.Retarget(openDir(t, dir)))
	for _, id := range m.Nodes() {
		m.server.InodeNotify(id, 0, -1)
	}
}

func openDir(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, content string, path ...string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(path...), []byte(content), 0o644))
}

func wantFile(t *testing.T, want string, path ...string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(path...))
	check(t, err)
	if string(got) != want {
		t.Fatalf("%s holds %q, want %q", filepath.Join(path...), got, want)
	}
}

func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

func stat(t *testing.T, path ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(path...), &st); err != nil {
		t.Fatalf("stat %s: %v", strings.Join(path, "/"), err)
	}
	return st
}

// descriptors counts this process's open descriptors on files below dir.
func descriptors(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	for _, fd := range fds {
		if path, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			if path == dir || strings.HasPrefix(path, dir+"/") {
				n++
			}
		}
	}
	return n
}

// nodeCount returns how many nodes there are, counted or not.
func (f *FS) nodeCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.nodes)
}

// eventually waits until ok, for what the kernel does by and by (RELEASE and
// FORGET have no answer to wait for).
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
