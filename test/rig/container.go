package rig

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Container is a process tree with a mount and pid namespace and a root of
// its own, such that CRIU takes it. It outlives the processes in it.
type Container struct {
	Root    string // the directory here; a mount point, as CRIU's --root wants it
	PID     int    // of its first process, seen from here
	Counter *Counter
	t       T
	ended   *Running
}

// The files inside a container that are seen from here.
const (
	statusInside   = "/run/status"
	logInside      = "/run/log"
	channelsInside = "/run"
)

// StartCounterContainer runs a counter as a container's first process, in dir
// inside. Each of binds, "SOURCE:TARGET", shows a directory of here inside.
func StartCounterContainer(t T, dir string, o CounterOptions, binds ...string) *Container {
	t.Helper()
	c := newContainer(t, Dir(t), Build(t).Counter, binds)
	c.Counter = counterAt(t, filepath.Join(c.Root, statusInside), o)
	c.start(binds, append([]string{"/bin/counter"}, o.args(dir, statusInside)...)...)
	c.Counter.PID = c.PID
	c.Counter.AwaitReady(c.ended)
	return c
}

// StartPuppetContainer runs a puppet as a container's first process.
func StartPuppetContainer(t T, binds ...string) (*Container, *Puppet) {
	t.Helper()
	c := newContainer(t, Dir(t), Build(t).Puppet, binds)
	p := &Puppet{t: t, channels: filepath.Join(c.Root, channelsInside), channelsInside: channelsInside, spawned: new(int)}
	name := p.newChannel()
	c.start(binds, "/bin/puppet", filepath.Join(channelsInside, name))
	p.PID = c.PID
	p.awaitFirst(c.ended.Ended(), &c.ended.err)
	return c, p
}

// newContainer makes the root in dir, with the program in it.
func newContainer(t T, dir, program string, binds []string) *Container {
	t.Helper()
	c := &Container{Root: Mkdir(t, dir, "root"), t: t}
	Bind(t, c.Root, c.Root)
	t.Cleanup(c.Kill)
	for _, d := range []string{"bin", "dev", "proc", "run", "tmp"} {
		Mkdir(t, c.Root, d)
	}
	for _, b := range binds {
		_, target, _ := strings.Cut(b, ":")
		Mkdir(t, c.Root, target)
	}
	mknod(t, filepath.Join(c.Root, "dev/null"), unix.Mkdev(1, 3))
	copyFile(t, program, c.program(program))
	return c
}

func (c *Container) program(path string) string {
	return filepath.Join(c.Root, "bin", filepath.Base(path))
}

func (c *Container) start(binds []string, command ...string) {
	c.t.Helper()
	args := append([]string{c.Root, logInside}, binds...)
	cmd := exec.Command(Build(c.t).Container, append(append(args, "--"), command...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	c.ended = Begin(c.t, cmd)
	c.PID = c.ended.PID
}

// Restored finds the container's first process anew, after a restore.
func (c *Container) Restored() {
	c.t.Helper()
	for _, pid := range c.processes() {
		if pidInside(pid) == 1 {
			c.PID = pid
			if c.Counter != nil {
				c.Counter.PID = pid
			}
			return
		}
	}
	c.t.Fatalf("no first process of the container in %s", c.Root)
}

// NotRunning fails t if a process of the container is there.
func (c *Container) NotRunning() {
	c.t.Helper()
	for _, pid := range c.processes() {
		c.t.Errorf("there is %s", describe(pid))
	}
}

// Kill ends all processes of the container, if there are any.
func (c *Container) Kill() {
	c.t.Helper()
	Kill(c.t, c.processes()...)
}

// processes lists what runs a program of the container's root, which no other
// process does.
func (c *Container) processes() (pids []int) {
	programs, _ := filepath.Glob(filepath.Join(c.Root, "bin", "*"))
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, program := range programs {
		var want, got unix.Stat_t
		if unix.Stat(program, &want) != nil {
			continue
		}
		for _, p := range all {
			if unix.Stat(p+"/exe", &got) == nil && got.Dev == want.Dev && got.Ino == want.Ino {
				pid, _ := strconv.Atoi(filepath.Base(p))
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// pidInside is a process's pid in its innermost pid namespace.
func pidInside(pid int) (inside int) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "NSpid:"); ok {
			words := strings.Fields(rest)
			inside, _ = strconv.Atoi(words[len(words)-1])
		}
	}
	return inside
}
