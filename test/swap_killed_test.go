package test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// victims are clients of a mount that is swapped by a swapper which is killed.
type victims struct {
	*mounts
	t       *testing.T
	puppet  *rig.Puppet
	child   *rig.Puppet
	tabled  *rig.Puppet // a thread with a descriptor table of its own
	counter *rig.Counter
	fd      int // of puppet, its child and tabled
	private uint64
	shared  uint64
	before  map[int]string
}

func newVictims(t *testing.T) *victims {
	t.Helper()
	v := &victims{mounts: bindfsTwice(t), t: t}
	v.put(t, "dir/f", pages(4))
	v.puppet = rig.StartPuppet(t)
	v.puppet.Chdir(v.old + "/dir")
	v.fd = v.puppet.Open(v.old+"/dir/f", unix.O_RDWR)
	v.puppet.Seek(v.fd, 3, unix.SEEK_SET)
	v.private = v.puppet.Mmap(v.fd, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	v.puppet.Store(v.private+page, []byte("its own"))
	v.shared = v.puppet.Mmap(v.fd, 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	v.puppet.Store(v.shared+2*page, []byte("everyone's"))
	v.child = v.puppet.Spawn(fork)
	v.tabled = v.puppet.Spawn(threadOf)
	v.tabled.Seek(v.fd, 3, unix.SEEK_SET)
	v.counter = rig.StartCounter(t, rig.Mkdir(t, v.old, "counter"), rig.CounterOptions{FDs: 3, Threads: 2, Children: 1})
	return v
}

func (v *victims) pids() []int {
	return append(rig.Tree(v.puppet.PID), rig.Tree(v.counter.PID)...)
}

// look describes what must be the same in a process before and after.
func (v *victims) look(pid int) string {
	v.t.Helper()
	var b strings.Builder
	proc := fmt.Sprintf("/proc/%d/", pid)
	fmt.Fprintf(&b, "mappings %d\n", rig.CountMappings(v.t, pid))
	tasks, _ := filepath.Glob(proc + "task/*")
	for _, task := range tasks {
		status, err := os.ReadFile(task + "/status")
		if err != nil {
			v.t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if name, _, _ := strings.Cut(line, ":"); name == "SigBlk" || name == "SigIgn" || name == "SigCgt" || name == "TracerPid" {
				b.WriteString(filepath.Base(task) + " " + line)
			}
		}
		fmt.Fprintf(&b, "%s descriptors %d\n", filepath.Base(task), v.descriptors(task))
	}
	fmt.Fprintf(&b, "vdso of %d bytes, checksum %x\n", len(v.vdso(pid)), sha256.Sum256(v.vdso(pid)))
	return b.String()
}

// descriptors counts those of a task but for the counter's, which come and go.
func (v *victims) descriptors(task string) (n int) {
	links, _ := filepath.Glob(task + "/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && !strings.HasPrefix(filepath.Base(to), "here.") {
			n++
		}
	}
	return n
}

// vdso reads the pages of a process's vDSO.
func (v *victims) vdso(pid int) []byte {
	v.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		v.t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		v.t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var start, end int64
		if strings.Contains(line, "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
				v.t.Fatal(err)
			}
			b := make([]byte, end-start)
			if _, err := mem.ReadAt(b, start); err != nil {
				v.t.Fatal(err)
			}
			return bytes.TrimRight(b, "\x00")
		}
	}
	v.t.Fatalf("process %d has no vDSO", pid)
	return nil
}

func (v *victims) remember() {
	v.before = map[int]string{}
	for _, pid := range v.pids() {
		v.before[pid] = v.look(pid)
	}
}

// untouched checks that nothing of a swapper is left in any process.
func (v *victims) untouched(what string) {
	v.t.Helper()
	for _, pid := range v.pids() {
		if s := rig.State(pid); s == "T" || s == "t" {
			v.t.Errorf("%s: process %d is stopped (%s)", what, pid, s)
		}
		var now string
		// The counter's threads open and close files, and map some.
		ok := false
		for end := time.Now().Add(5 * time.Second); !ok && time.Now().Before(end); time.Sleep(time.Millisecond) {
			now = v.look(pid)
			ok = now == v.before[pid]
		}
		if !ok {
			v.t.Fatalf("%s: process %d was\n%sand is\n%s", what, pid, v.before[pid], now)
		}
	}
}

// side returns the file system that all processes are on, once it is one: after
// the verdict each changes over by itself, also when the swapper is dead. That
// it has, nothing but /proc tells, which has no event.
func (v *victims) side(what string) (dev uint64) {
	v.t.Helper()
	var mixed string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if dev, mixed = v.sides(); mixed == "" {
			return dev
		}
	}
	v.t.Fatalf("%s: %s (old %s, new %s)", what, mixed, devName(v.oldDev), devName(v.newDev))
	return 0
}

// sides looks what file system the descriptors, mappings and directories of
// every task are on, and says what is on another than the rest.
func (v *victims) sides() (dev uint64, mixed string) {
	v.t.Helper()
	on := func(where string, d uint64) {
		if d != v.oldDev && d != v.newDev {
			return
		}
		if dev == 0 {
			dev = d
		}
		if d != dev {
			mixed = fmt.Sprintf("%s is on %s, and something else on %s", where, devName(d), devName(dev))
		}
	}
	for _, pid := range v.pids() {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/fd/*", pid))
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/cwd", pid))
		for _, l := range append(links, tasks...) {
			var st unix.Stat_t
			if err := unix.Stat(l, &st); err == nil { // some are closed meanwhile
				on(l, st.Dev)
			}
		}
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			v.t.Fatal(err)
		}
		for line := range strings.Lines(string(maps)) {
			var major, minor uint32
			if f := strings.Fields(line); len(f) > 4 {
				if _, err := fmt.Sscanf(f[3], "%x:%x", &major, &minor); err == nil {
					on(fmt.Sprintf("mapping of %d: %s", pid, line), unix.Mkdev(major, minor))
				}
			}
		}
	}
	return dev, mixed
}

// live checks that the clients have kept what they had, and go on.
func (v *victims) live(what string) {
	v.t.Helper()
	for _, p := range []*rig.Puppet{v.puppet, v.child, v.tabled} {
		if got := p.Offset(v.fd); got != 3 {
			v.t.Fatalf("%s: the offset of a descriptor of %d is %d, want 3", what, p.PID, got)
		}
		if got := p.Getcwd(); got != v.old+"/dir" {
			v.t.Fatalf("%s: process %d is in %s", what, p.PID, got)
		}
	}
	for _, c := range []struct {
		at   uint64
		want string
	}{{v.private + page, "its own"}, {v.shared + 2*page, "everyone's"}} {
		if got := string(v.puppet.Load(c.at, len(c.want))); got != c.want {
			v.t.Fatalf("%s: memory at %#x holds %q, want %q", what, c.at, got, c.want)
		}
	}
	v.counter.CountsOn(3)
	v.counter.Verdict()
}

// recoverRuns is what spfs-swap recover finds.
func recoverRuns(t *testing.T, program string) (found []struct {
	Swapped  bool     `json:"swapped"`
	Mounts   int      `json:"mounts"`
	Cleaned  []int    `json:"cleaned"`
	Problems []string `json:"problems"`
}) {
	t.Helper()
	rig.Run(t, program, "recover", "--json").OK(t).JSON(t, &found)
	return found
}

// settled checks everything after a swapper was killed. If all of its
// processes were, it is only after "recover" that nothing may be left. It
// reports whether the mounts that the clients' files were opened through were
// lost with them: then their paths can't be told any more.
func (v *victims) settled(program, what string, all bool) (lost bool) {
	v.t.Helper()
	found := recoverRuns(v.t, program)
	if len(found) > 0 && !all {
		v.t.Fatalf("%s: something was left to recover: %+v", what, found)
	}
	if again := recoverRuns(v.t, program); len(again) != 0 {
		v.t.Fatalf("%s: a second recovery found %+v", what, again)
	}
	v.untouched(what)
	side := v.side(what)
	if table := devAt(v.t, 0, v.old); table != side {
		v.t.Fatalf("%s: processes are on %s, the mount point is %s", what, devName(side), devName(table))
	}
	if len(found) > 0 && found[0].Swapped != (side == v.newDev) {
		v.t.Fatalf("%s: recover found %+v, and the processes are on %s (old %s)", what, found, devName(side), devName(v.oldDev))
	}
	if all && len(found) > 0 && found[0].Mounts > 0 && v.puppet.Getcwd() != v.old+"/dir" {
		return true
	}
	v.live(what)
	if side == v.newDev {
		v.restart(v.t)
	}
	return false
}

// run runs the swapper that kills itself at a point.
func (v *victims) run(program, log string, env ...string) rig.Result {
	v.t.Helper()
	cmd := exec.Command(program, "run", "--from", v.old, "--to", v.new)
	cmd.Env = append(append(os.Environ(), "SPFS_FAULT_LOG="+log), env...)
	r := rig.RunCmd(v.t, cmd)
	worker := 0
	eachPoint(v.t, log, func(pid int, _ string) { worker = pid })
	if worker != 0 {
		rig.Await(v.t, 20*time.Second, func() bool { return !rig.Alive(worker) }, "the end of the worker %d", worker)
	}
	return r
}

func eachPoint(t *testing.T, log string, do func(pid int, name string)) {
	t.Helper()
	f, err := os.Open(log)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		number, name, _ := strings.Cut(s.Text(), " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		do(pid, name)
	}
}

// TestSwapKilledAtEveryPoint kills the worker, the command, both of them, or
// their guard as well, with SIGKILL at every point between two steps of a run.
func TestSwapKilledAtEveryPoint(t *testing.T) {
	// Alone: what is left is recovered from all of /run/spfs.
	program := rig.BuildWith(t, "spfs-swap", "faults")
	v := newVictims(t)
	dir := rig.Dir(t)
	v.run(program, dir+"/points").OK(t)
	v.restart(t)
	var order []string
	times := map[string]int{}
	eachPoint(t, dir+"/points", func(_ int, name string) {
		if times[name]++; times[name] == 1 {
			order = append(order, name)
		}
	})
	if len(order) < 20 {
		t.Fatalf("only the points %q were reached", order)
	}
	v.remember()
	n := 0
	kill := func(name string, nth int, who string) {
		n++
		what := fmt.Sprintf("kill %s at %q, time %d", who, name, nth)
		r := v.run(program, fmt.Sprintf("%s/log.%d", dir, n), fmt.Sprintf("SPFS_FAULT=%s#%d", name, nth), "SPFS_FAULT_KILL="+who)
		t.Logf("%s: %v, status %d: %s%s", what, r.Took.Round(time.Millisecond), r.Status, r.Stdout, r.Stderr)
		if swapped := v.side(what) == v.newDev; who == "self" && swapped != (r.Status == 0) {
			t.Fatalf("%s: swapped is %v, the status %d", what, swapped, r.Status)
		}
		if v.settled(program, what, who == "all") {
			t.Fatalf("%s: the mounts were lost", what)
		}
	}
	for i, name := range order {
		for k, who := range []string{"self", "parent", "both", "all"} {
			if who == "all" && loses[name] {
				continue // see TestSwapKilledBeforeTheMounts
			}
			if everyCombination {
				kill(name, 1, who)
				kill(name, times[name], who)
			} else if k == i%4 || who == "both" && loses[name] {
				kill(name, 1+(times[name]-1)*(i%2), who) // the first or the last time
			}
		}
	}
	t.Logf("%d kills at %d points", n, len(order))
	v.counter.Check()
	v.counter.End(v.data + "/counter")
}

// loses are the points at which the death of all processes loses the mounts
// that the clients' files were opened through.
var loses = map[string]bool{"committed": true, "mounts: parent isolated": true}

// TestSwapKilledBeforeTheMounts kills all processes right after the verdict:
// all are on the new mount, and "recover" changes the mount points.
func TestSwapKilledBeforeTheMounts(t *testing.T) {
	// Alone, as TestSwapKilledAtEveryPoint.
	program := rig.BuildWith(t, "spfs-swap", "faults")
	v := newVictims(t)
	v.remember()
	v.run(program, rig.Dir(t)+"/log", "SPFS_FAULT=committed", "SPFS_FAULT_KILL=all")
	if got := devAt(t, 0, v.old); got != v.oldDev {
		t.Fatalf("the mount point is %s before the recovery, want %s", devName(got), devName(v.oldDev))
	}
	rig.Run(t, program, "run", "--from", v.old, "--to", v.new).Refuses(t, "spfs-swap recover")
	found := recoverRuns(t, program)
	if len(found) != 1 || !found[0].Swapped || found[0].Mounts != 1 || len(found[0].Problems) != 0 {
		t.Fatalf("recover found %+v", found)
	}
	if again := recoverRuns(t, program); len(again) != 0 {
		t.Fatalf("a second recovery found %+v", again)
	}
	v.untouched("killed after the verdict")
	if side, table := v.side("killed after the verdict"), devAt(t, 0, v.old); side != v.newDev || table != v.newDev {
		t.Fatalf("processes are on %s, the mount point is %s, want %s", devName(side), devName(table), devName(v.newDev))
	}
	v.counter.CountsOn(3)
	v.counter.Check()
	v.counter.End(v.data + "/counter")
}
