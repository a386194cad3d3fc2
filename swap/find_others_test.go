package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
	"spfs/test/rig"
)

// refuses fails t unless exactly one of u's obstacles is about a process and
// says want.
func (u *Usage) refuses(t *testing.T, pid int, want string) {
	t.Helper()
	var of []Obstacle
	for _, o := range u.Obstacles {
		if o.PID == pid && strings.Contains(o.String(), want) {
			of = append(of, o)
		}
	}
	if len(of) != 1 {
		t.Errorf("%q is in the way of process %d %d times: %v", want, pid, len(of), u.Obstacles)
	}
}

func TestFindProgramsOnTheMount(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	program, err := os.ReadFile(rig.Build(t).Puppet)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data+"/program", program, 0o755); err != nil {
		t.Fatal(err)
	}
	p := rig.StartPuppet(t, func(cmd *exec.Cmd) { cmd.Path = old + "/program" })
	u := findOn(t, old, Scope{})
	u.clear(t)
	if len(u.Spaces) != 1 || u.Spaces[0].Tasks[0].PID != p.PID || u.Spaces[0].Exe == nil || u.Spaces[0].Exe.Path != "/program" {
		t.Errorf("the program of %d was not found: %+v", p.PID, u.Spaces)
	}
}

// program32 is a static 32-bit x86 program that does nothing for ever: the
// ELF header, one program header, and "mov $29, %eax; int $0x80; jmp" to the
// start, which is pause(2) again and again.
func program32() []byte {
	const base, headers = 0x08048000, 52 + 32
	code := []byte{0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7}
	size := uint32(headers + len(code))
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, 3) // EM_386
	for _, v := range []uint32{1, base + headers, 52, 0, 0} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{52, 32, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{1 /* PT_LOAD */, 0, base, base, size, size, 5 /* r-x */, 0x1000} {
		b = le.AppendUint32(b, v)
	}
	return append(b, code...)
}

// lowerStartStack makes p's stack begin below 4 GiB, by its own word
// (PR_SET_MM_MAP, which changes what /proc shows and nothing else).
func lowerStartStack(t *testing.T, p *rig.Puppet) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	field := func(n int) uint64 { // as proc_pid_stat(5) counts
		v, err := strconv.ParseUint(fields[n-3], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	const (
		lowStack = 0xfff00000
		noFile   = 1<<32 - 1 // exe_fd -1: as it is

		prSetMMMap = 14 // include/uapi/linux/prctl.h
	)
	var m []byte // struct prctl_mm_map
	for _, v := range []uint64{
		field(26), field(27), field(45), field(46), // code, data
		field(47), uint64(p.Must(unix.SYS_BRK, 0)), lowStack,
		field(48), field(49), field(50), field(51), // arguments, environment
		0, noFile << 32, // no auxv
	} {
		m = binary.LittleEndian.AppendUint64(m, v)
	}
	p.Must(unix.SYS_PRCTL, unix.PR_SET_MM, prSetMMMap, m, len(m), 0)
}

func TestFind32BitPrograms(t *testing.T) {
	_, m := rig.Served(t, "old")
	old := m[0]
	path := filepath.Join(rig.Dir(t), "program")
	if err := os.WriteFile(path, program32(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Start(); errors.Is(err, unix.ENOEXEC) {
		// This kernel runs none. To those who look, a 64-bit one with its
		// stack where only theirs begins is the same.
		p := rig.StartPuppet(t)
		p.Chdir(old)
		findOn(t, old, Scope{}).clear(t)
		lowerStartStack(t, p)
		findOn(t, old, Scope{}).refuses(t, p.PID, "program: it is a 32-bit one")
		return
	}
	cmd := exec.Command(path)
	cmd.Dir = old
	p := rig.Begin(t, cmd)
	findOn(t, old, Scope{}).refuses(t, p.PID, "program: it is a 32-bit one")
}

func TestFindTracedProcesses(t *testing.T) {
	_, m := rig.Served(t, "old")
	old := m[0]
	p, debugger := rig.StartPuppet(t), rig.StartPuppet(t)
	p.Chdir(old)
	findOn(t, old, Scope{}).clear(t)
	debugger.Must(unix.SYS_PTRACE, unix.PTRACE_SEIZE, p.PID, 0, 0)
	findOn(t, old, Scope{}).refuses(t, p.PID, fmt.Sprintf("1 of its threads: process %d traces them", debugger.PID))
	debugger.Must(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, p.PID, 0, 0)
}

func TestFindServersThatAreClients(t *testing.T) {
	data, old := rig.Mkdir(t, rig.Dir(t), "data"), rig.Mkdir(t, rig.Dir(t), "old")
	daemon := rig.Bindfs(t, data, old)
	rig.Write(t, data+"/file", "x")
	p := rig.StartPuppet(t)
	p.Open(old+"/file", unix.O_RDONLY)
	u := findOn(t, old, Scope{})
	u.clear(t)
	if !slices.Equal(u.Servers, []int{daemon.PID}) {
		t.Errorf("served by %v, want %d", u.Servers, daemon.PID)
	}
	// It gets the connection, and so could answer.
	links, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", daemon.PID))
	if err != nil {
		t.Fatal(err)
	}
	pidfd := p.Must(unix.SYS_PIDFD_OPEN, daemon.PID, 0)
	for _, l := range links {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", daemon.PID, l.Name())); to == "/dev/fuse" {
			var fd int
			fmt.Sscan(l.Name(), &fd)
			p.Must(unix.SYS_PIDFD_GETFD, pidfd, fd, 0)
		}
	}
	u = findOn(t, old, Scope{})
	u.refuses(t, p.PID, "the daemon itself: it serves the mount and uses it")
	if !slices.Contains(u.Servers, p.PID) {
		t.Errorf("served by %v, want %d too", u.Servers, p.PID)
	}
}

func TestFindInCgroups(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/file", "x")
	own, err := mounts.Own()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	table, err := own.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, fs := range table {
		_, freezer := fs.SuperOption("freezer")
		if fs.FSType != "cgroup2" && !freezer {
			continue
		}
		tried++
		group := fmt.Sprintf("%s/spfs-test-%d-%d", fs.Point, os.Getpid(), tried)
		for _, dir := range []string{group, group + "/sub", group + "-not"} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			})
		}
		var pids []int
		for _, dir := range []string{group, group + "/sub", group + "-not"} {
			p := rig.StartPuppet(t)
			p.Open(old+"/file", unix.O_RDONLY)
			if err := os.WriteFile(dir+"/cgroup.procs", fmt.Append(nil, p.PID), 0); err != nil {
				t.Fatal(err)
			}
			pids = append(pids, p.PID)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		var named string
		for _, line := range strings.Split(string(text), "\n") {
			if strings.HasSuffix(line, filepath.Base(group)) {
				_, named, _ = strings.Cut(line[strings.IndexByte(line, ':')+1:], ":")
			}
		}
		for _, c := range []struct {
			path string
			want []int
		}{{group, pids[:2]}, {group + "/", pids[:2]}, {named, pids[:2]}, {group + "/sub", pids[1:2]}} {
			u := findOn(t, old, Scope{Cgroups: []string{c.path}})
			u.clear(t)
			var found []int
			for _, p := range u.Processes {
				found = append(found, p.PID)
			}
			slices.Sort(found)
			want := slices.Sorted(slices.Values(c.want))
			if !slices.Equal(found, want) {
				t.Errorf("%s: found %v, want %v", c.path, found, want)
			}
		}
	}
	if tried == 0 {
		t.Fatal("no cgroup hierarchy is mounted")
	}
}

// TestFindPassesOverWhoHangsElsewhere has a process that hangs in an exec: it
// closes a file of a daemon that does not answer, and holds exec_update_lock
// meanwhile (fs/exec.c begin_new_exec), for which reading its memory waits.
func TestFindPassesOverWhoHangsElsewhere(t *testing.T) {
	data, m := rig.Served(t, "old")
	old := m[0]
	rig.Write(t, data+"/file", "x")
	elsewhere := rig.Mkdir(t, rig.Dir(t), "elsewhere")
	daemon := rig.Bindfs(t, data, elsewhere)
	idle, user := rig.StartPuppet(t), rig.StartPuppet(t)
	fd := user.Open(old+"/file", unix.O_RDONLY)
	closing := map[*rig.Puppet]int{}
	for _, p := range []*rig.Puppet{idle, user} {
		closing[p] = p.Open(elsewhere+"/file", unix.O_RDWR|unix.O_CLOEXEC)
	}
	// Should this test be killed, the two must not hang for good: whoever reads
	// their /proc/PID/stat, ps for one, would hang with them.
	release := exec.Command("sh", "-c", "sleep 60; kill -CONT "+strconv.Itoa(daemon.PID))
	release.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	group := -rig.Begin(t, release).PID
	t.Cleanup(func() { unix.Kill(group, unix.SIGKILL) })
	if err := unix.Kill(daemon.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Kill(daemon.PID, unix.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []*rig.Puppet{idle, user} {
		p.Start(unix.SYS_EXECVE, "/bin/sleep", 0, 0)
		// Reading its stat, its links or its kernel stack would hang too, but
		// that the descriptor is taken off can be seen.
		info := fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, closing[p])
		rig.Await(t, 10*time.Second, func() bool {
			_, err := os.ReadFile(info)
			return err != nil
		}, "process %d does not close fd %d", p.PID, closing[p])
	}
	k := &knowledge{}
	defer k.close()
	at, err := NewEndpoint(old)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		begin := time.Now()
		u, err := find(t.Context(), at.Mount.Dev, Scope{}, k)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if !slices.Contains(u.Hidden, idle.PID) || slices.Contains(u.Hidden, user.PID) {
			t.Errorf("hidden are %v, want %d, and not %d, which uses the mount", u.Hidden, idle.PID, user.PID)
		}
		u.refuses(t, user.PID, fmt.Sprintf("(puppet): fd %d: the process hangs", fd))
		if len(u.Obstacles) != 1 {
			t.Errorf("in the way: %v", u.Obstacles)
		}
		if k.hung[idle.PID] == 0 || k.hung[user.PID] == 0 {
			t.Error("the next look would wait as long")
		}
	}
	if u := findOn(t, old, Scope{Trees: []int{idle.PID}}); len(u.Obstacles) != 1 || u.Obstacles[0].PID != idle.PID {
		t.Errorf("who is named can't be looked at, and in the way is %v", u.Obstacles)
	}
}
