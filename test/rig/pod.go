package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Pod is a container that runs its own FUSE daemon, which serves the
// container's directory "data", and a counter that works on what it serves.
type Pod struct {
	*Container
	Kind PodKind
	Data string // what the daemon serves, seen from here
}

// The daemon's directories in a pod.
const (
	podData  = "/data"
	PodMount = "/mnt"
)

// PodKind is a FUSE daemon that can run in a pod.
type PodKind struct {
	Name     string
	Programs []string // of the machine, to be put into /bin
	Command  []string // words of fixture/pod.c

	// TCP tells that the daemon has connections, which a checkpoint needs a
	// newer CRIU for.
	TCP bool

	// Prepare, if not nil, puts files into the root.
	Prepare func(t T, root string)

	// Once tells that the daemon lists an open directory only once, for as
	// long as it remembers nothing of it.
	Once bool
}

// PodBindfs is bindfs, which has one thread unless given --multithreaded.
func PodBindfs(t T, name string, options ...string) PodKind {
	return PodKind{
		Name:     name,
		Programs: []string{lookPath(t, "bindfs")},
		Command:  slices.Concat([]string{"at=" + PodMount, "/bin/bindfs", "-f"}, options, []string{podData, PodMount}),
	}
}

// PodWriteback is fixture/writeback.c.
func PodWriteback(t T, name string, options ...string) PodKind {
	return PodKind{
		Name:     name,
		Programs: []string{Build(t).Writeback},
		Command:  slices.Concat([]string{"at=" + PodMount, "/bin/writeback"}, options, []string{podData, PodMount}),
	}
}

// PodLoopback is go-fuse's loopback file system.
func PodLoopback(t T) PodKind {
	return PodKind{
		Name:     "go-fuse",
		Programs: []string{Build(t).Loopback},
		Command:  []string{"at=" + PodMount, "/bin/loopback", podData, PodMount},
	}
}

// PodSshfs is sshfs, with its ssh, and with the sshd that it is connected to,
// in the pod.
func PodSshfs(t T) PodKind {
	t.Helper()
	s := newSSHServer(t)
	const keys = "/keys"
	inside := &SSHServer{port: s.port, dir: keys}
	config := s.config(inside)
	return PodKind{
		Name:     "sshfs",
		Programs: []string{lookPath(t, "sshfs"), lookPath(t, "ssh"), "/usr/sbin/sshd"},
		TCP:      true,
		Once:     true, // sshfs, when its cache of it is older than 20 s
		Command: slices.Concat(
			[]string{fmt.Sprintf("port=%d", s.port), "/bin/sshd", "-D", "-e", "-f", keys + "/config", "--"},
			[]string{"at=" + PodMount, "/bin/sshfs", "-f", "-o", "ssh_command=/bin/ssh"}, inside.args(podData, PodMount)),
		Prepare: func(t T, root string) {
			for _, name := range []string{"host", "host.pub", "user", "user.pub", "known"} {
				b, err := os.ReadFile(s.path(name))
				if err != nil {
					t.Fatalf("%v", err)
				}
				Write(t, filepath.Join(root, keys, name), string(b))
				if err := os.Chmod(filepath.Join(root, keys, name), 0o600); err != nil {
					t.Fatalf("%v", err)
				}
			}
			Write(t, filepath.Join(root, keys, "config"), config)
			Write(t, filepath.Join(root, "etc/passwd"),
				"root:x:0:0:root:/:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
			Write(t, filepath.Join(root, "etc/group"), "root:x:0:\nnogroup:x:65534:\n")
			// The login shell need be there, and runs nothing: sshd serves SFTP itself.
			Write(t, filepath.Join(root, "bin/sh"), "")
			if err := os.Chmod(filepath.Join(root, "bin/sh"), 0o755); err != nil {
				t.Fatalf("%v", err)
			}
			Mkdir(t, root, "run/sshd")
			for name, minor := range map[string]uint32{"random": 8, "urandom": 9} {
				mknod(t, filepath.Join(root, "dev", name), unix.Mkdev(1, minor))
			}
		},
	}
}

func lookPath(t T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: run \"make deps\"", err)
	}
	return path
}

func mknod(t T, path string, dev uint64) {
	t.Helper()
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(dev)); err != nil {
		t.Fatalf("mknod %s: %v", path, err)
	}
}

// PodDirectory is a pod without a daemon: its counter works on a directory of the
// container's root, and beside it a process sleeps.
func PodDirectory(t T) PodKind {
	return PodKind{
		Name:     "directory",
		Programs: []string{lookPath(t, "sleep")},
		Command:  []string{"/bin/sleep", "infinity"},
	}
}

// StartPod starts a pod, and waits until its counter counts. With a kind that
// mounts nothing, the counter works on a directory of the container's root.
func StartPod(t T, kind PodKind, o CounterOptions) *Pod {
	t.Helper()
	b := Build(t)
	// In memory: a directory of ext4 that is opened, positioned at its end and
	// read there stays at its end, even when it is positioned at its beginning
	// (fs/ext4/dir.c: ext4_dx_readdir). CRIU does the former, to whoever had it
	// open there.
	top := Dir(t)
	if err := unix.Mount("pod", top, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatalf("mount a tmpfs on %s: %v", top, err)
	}
	t.Cleanup(func() { Unmount(t, top) })
	c := newContainer(t, top, b.Pod, nil)
	p := &Pod{Container: c, Kind: kind, Data: Mkdir(t, c.Root, podData)}
	Mkdir(t, c.Root, PodMount)
	mknod(t, filepath.Join(c.Root, "dev/fuse"), unix.Mkdev(10, 229))
	for _, program := range append(slices.Clone(kind.Programs), b.Counter) {
		c.install(program)
	}
	if kind.Prepare != nil {
		kind.Prepare(t, c.Root)
	}
	in := podData
	if slices.Contains(kind.Command, "at="+PodMount) {
		in = PodMount
	}
	command := append([]string{"/bin/pod"}, kind.Command...)
	if len(kind.Command) > 0 {
		command = append(command, "--")
	}
	o.Reopens = kind.Once
	c.Counter = counterAt(t, filepath.Join(c.Root, statusInside), o)
	c.start(nil, append(append(command, "/bin/counter"), o.args(in, statusInside)...)...)
	c.Counter.AwaitReady(c.ended)
	p.findCounter()
	return p
}

// Restored finds the pod's processes anew, after a restore.
func (p *Pod) Restored() {
	p.t.Helper()
	p.Container.Restored()
	p.findCounter()
}

func (p *Pod) findCounter() {
	p.t.Helper()
	for _, pid := range children(p.PID) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == "counter" {
			p.Counter.PID = pid
			return
		}
	}
	p.t.Fatalf("no counter in the pod: its processes are %v; it says: %s", Tree(p.PID), p.Log())
}

// Daemon is the pid of the pod's FUSE daemon.
func (p *Pod) Daemon() int {
	p.t.Helper()
	for _, pid := range Tree(p.PID) {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		for _, fd := range fds {
			if b, _ := os.ReadFile(fd); strings.Contains(string(b), "fuse_connection:") {
				return pid
			}
		}
	}
	p.t.Fatalf("no FUSE daemon in the pod: its processes are %v", Tree(p.PID))
	return 0
}

// Log is what the pod's processes have said.
func (p *Pod) Log() string {
	b, _ := os.ReadFile(filepath.Join(p.Root, logInside))
	return string(b)
}

// install copies a program of the machine's into the container's /bin, and the
// libraries that it loads to where it looks for them.
func (c *Container) install(program string) {
	c.t.Helper()
	copyFile(c.t, program, c.program(program))
	// Of a static program it says just that, and fails.
	out, _ := exec.Command("ldd", program).Output()
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			if to := filepath.Join(c.Root, word); unix.Access(to, unix.F_OK) != nil {
				Mkdir(c.t, filepath.Dir(to))
				copyFile(c.t, word, to)
			}
		}
	}
}

func copyFile(t T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
}
