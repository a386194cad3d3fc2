package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// pods are the daemons that a tree is checkpointed with.
func pods(t *testing.T) []rig.PodKind {
	return []rig.PodKind{
		rig.PodBindfs(t, "bindfs"),
		rig.PodBindfs(t, "bindfs-threads", "--multithreaded"),
		rig.PodWriteback(t, "writeback"),
		rig.PodWriteback(t, "writeback-clone_fd", "-o", "clone_fd"),
		rig.PodLoopback(t),
		rig.PodSshfs(t),
	}
}

// podClient is what works in a pod without a pause.
var podClient = rig.CounterOptions{FDs: 3, Threads: 1, Children: 1, Lists: true}

// The client of the tests that follow finds no fault with any of the daemons as
// long as nothing is done to them.
func TestPods(t *testing.T) {
	for _, k := range append(pods(t), rig.PodKind{Name: "directory"}) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			p.Counter.CountsOn(300)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// podCRIU is the CRIU for a pod, and its options.
func podCRIU(t *testing.T, p *rig.Pod) (criu string, options []string) {
	t.Helper()
	b := rig.Build(t)
	if p.Kind.TCP {
		return b.CRIUNext, []string{"--tcp-established", "--network-lock", "nftables"}
	}
	return b.CRIU, nil
}

func dumpPodCommand(t *testing.T, p *rig.Pod, images string, flags ...string) rig.Result {
	t.Helper()
	criu, options := podCRIU(t, p)
	return rig.SPFS(t, slices.Concat([]string{"dump", "--tree", itoa(p.PID), "--images-dir", images, "--criu", criu},
		flags, []string{"--"}, options)...)
}

// dumpPod checkpoints a pod into a new directory.
func dumpPod(t *testing.T, p *rig.Pod, flags ...string) (images string) {
	t.Helper()
	images = rig.Mkdir(t, rig.Dir(t), "images")
	logs(t, images)
	dumpPodCommand(t, p, images, flags...).OK(t)
	return images
}

func restorePodCommand(t *testing.T, p *rig.Pod, images string, flags ...string) rig.Result {
	t.Helper()
	criu, options := podCRIU(t, p)
	return rig.SPFS(t, slices.Concat([]string{"restore", "--images-dir", images, "--detach", "--criu", criu},
		flags, []string{"--", "--root", p.Root}, options)...)
}

// restorePod brings a pod back.
func restorePod(t *testing.T, p *rig.Pod, images string, flags ...string) {
	t.Helper()
	r := restorePodCommand(t, p, images, flags...).OK(t)
	p.Restored()
	if said := strings.TrimSpace(r.Stdout); said != itoa(p.PID) {
		t.Errorf("restore printed %q, want the root's pid %d", said, p.PID)
	}
	nothingLeft(t)
}

// logs shows the ends of CRIU's logs, should the test fail.
func logs(t *testing.T, images string) {
	t.Helper()
	t.Cleanup(func() {
		for _, name := range []string{"dump.log", "restore.log"} {
			if b, err := os.ReadFile(filepath.Join(images, name)); err == nil && t.Failed() {
				t.Logf("%s ends: %s", name, b[max(0, len(b)-4000):])
			}
		}
	})
}

// state is what must not grow with a checkpoint.
type state struct {
	daemonFDs, clientFDs, clientMappings int
	handles                              int // that the daemon has open, if it tells
}

// stateOf looks for a while and returns the least of everything: some comes and
// goes with the client's work.
func stateOf(t *testing.T, p *rig.Pod) (least state) {
	t.Helper()
	daemon := p.Daemon()
	for i := range 100 {
		s := state{
			daemonFDs: countFiles(t, daemon),
			clientFDs: p.Counter.CountFDs(p.Counter.PID), clientMappings: rig.CountMappings(t, p.Counter.PID),
		}
		if strings.HasPrefix(p.Kind.Name, "writeback") {
			s.handles = handlesOf(t, p)
		}
		if i == 0 {
			least = s
		}
		least = state{min(least.daemonFDs, s.daemonFDs), min(least.clientFDs, s.clientFDs),
			min(least.clientMappings, s.clientMappings), min(least.handles, s.handles)}
		time.Sleep(2 * time.Millisecond)
	}
	return least
}

// countFiles counts a daemon's descriptors, without pipes: go-fuse has some for
// each request that it answers at the same time as others.
func countFiles(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && !strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// handlesOf asks fixture/writeback.c how many handles are open.
func handlesOf(t *testing.T, p *rig.Pod) (n int) {
	t.Helper()
	b := make([]byte, 64)
	size, err := unix.Getxattr(filepath.Join("/proc", itoa(p.PID), "root", rig.PodMount), "trusted.spfs.handles", b)
	if err == nil {
		n, err = strconv.Atoi(string(b[:size]))
	}
	if err != nil {
		t.Fatalf("the daemon's open handles: %v", err)
	}
	return n
}

// check fails t if there is more than before; but for what a client may have
// open for a moment, and the nodes that the kernel remembers, for which
// fixture/writeback.c has a descriptor each. Less than one a round is no growth.
func (s state) check(t *testing.T, p *rig.Pod) {
	t.Helper()
	const slack = 6
	if now := stateOf(t, p); now.daemonFDs > s.daemonFDs+slack || now.clientFDs > s.clientFDs+slack ||
		now.clientMappings > s.clientMappings+slack || now.handles > s.handles+slack {
		t.Errorf("there is %+v, and was %+v", now, s)
	}
}

// A pod is checkpointed, killed and restored many times, with its daemon, and
// its client never has a failed call or a wrong byte.
func TestHandover(t *testing.T) {
	for _, k := range pods(t) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			p.Counter.CountsOn(50)
			var before state
			for round := range rounds {
				images := dumpPod(t, p)
				p.NotRunning()
				restorePod(t, p, images)
				p.Counter.CountsOn(20)
				p.Counter.Verdict()
				if round == 0 {
					// A restored mapping has a description, and so a
					// handle of the daemon's, of its own.
					before = stateOf(t, p)
				}
				if t.Failed() {
					t.Fatalf("in round %d; the pod says: %s", round, p.Log())
				}
				os.RemoveAll(images)
			}
			before.check(t, p)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// rounds is how often each kind of pod goes through a checkpoint.
const rounds = 20

// A pod is checkpointed and runs on, many times: the same processes, the same
// connection, the same descriptors.
func TestHandoverLeavesRunning(t *testing.T) {
	for _, k := range pods(t) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			p.Counter.CountsOn(50)
			before, devices, tree := stateOf(t, p), descriptorsOf(t, p.Daemon()), rig.Tree(p.PID)
			for round := range rounds {
				images := dumpPod(t, p, "--leave-running")
				p.Counter.CountsOn(20)
				p.Counter.Verdict()
				if got := descriptorsOf(t, p.Daemon()); !slices.Equal(got, devices) {
					t.Errorf("the daemon's /dev/fuse are %v, want %v", got, devices)
				}
				if got := rig.Tree(p.PID); !slices.Equal(got, tree) {
					t.Errorf("the processes are %v, want %v", got, tree)
				}
				if t.Failed() {
					t.Fatalf("in round %d; the pod says: %s", round, p.Log())
				}
				os.RemoveAll(images)
			}
			before.check(t, p)
			p.Counter.Check()
			// And what is dumped after can be restored.
			images := dumpPod(t, p)
			restorePod(t, p, images)
			p.Counter.CountsOn(50)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// The same by the other strategy: the clients come back on a stub, the daemon
// with its connection, and then the clients are swapped.
func TestHandoverBySwap(t *testing.T) {
	for _, k := range pods(t) {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			p.Counter.CountsOn(50)
			var before state
			for round := range rounds {
				images := dumpPod(t, p)
				restorePod(t, p, images, "--strategy", "swap")
				p.Counter.CountsOn(20)
				p.Counter.Verdict()
				if round == 0 {
					before = stateOf(t, p)
				}
				if t.Failed() {
					t.Fatalf("in round %d; the pod says: %s", round, p.Log())
				}
				os.RemoveAll(images)
			}
			before.check(t, p)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// A dump that fails, at whatever stage, leaves the pod running as it was.
func TestHandoverDumpThatFails(t *testing.T) {
	for _, k := range []rig.PodKind{rig.PodBindfs(t, "bindfs"), rig.PodWriteback(t, "writeback")} {
		t.Run(k.Name, func(t *testing.T) {
			p := rig.StartPod(t, k, podClient)
			p.Counter.CountsOn(50)
			before, devices := stateOf(t, p), descriptorsOf(t, p.Daemon())
			fails := func(what, images string, r rig.Result, words ...string) {
				t.Helper()
				if r.Status != 1 {
					t.Errorf("%s: exit status %d, want 1\n%s%s", what, r.Status, r.Stdout, r.Stderr)
				}
				for _, w := range words {
					if !strings.Contains(r.Stderr, w) {
						t.Errorf("%s: it does not say %q:\n%s", what, w, r.Stderr)
					}
				}
				p.Counter.CountsOn(20)
				p.Counter.Verdict()
				if got := descriptorsOf(t, p.Daemon()); !slices.Equal(got, devices) {
					t.Errorf("%s: the daemon's /dev/fuse are %v, want %v", what, got, devices)
				}
			}

			// The images fill a file system, sooner or later.
			for _, kilobytes := range []int{4, 64, 256, 1024} {
				images := rig.Mkdir(t, rig.Dir(t), "images")
				if err := unix.Mount("images", images, "tmpfs", 0, fmt.Sprintf("size=%dk", kilobytes)); err != nil {
					t.Fatal(err)
				}
				fails(fmt.Sprintf("images of at most %d KB", kilobytes), images, dumpPodCommand(t, p, images))
				rig.Unmount(t, images)
			}
			// The manifest can't be written, when all else is there.
			images := rig.Mkdir(t, rig.Dir(t), "images")
			rig.Mkdir(t, images, "spfs.manifest.new")
			fails("no manifest", images, dumpPodCommand(t, p, images), "spfs.manifest")
			// Nor can the images be changed.
			images = rig.Mkdir(t, rig.Dir(t), "images")
			rig.Mkdir(t, images, "files.img.new")
			fails("no files.img", images, dumpPodCommand(t, p, images), "files.img")
			// CRIU does not know an option.
			images = rig.Mkdir(t, rig.Dir(t), "images")
			fails("an option that is none", images, rig.SPFS(t, "dump", "--tree", itoa(p.PID), "--images-dir", images,
				"--criu", rig.Build(t).CRIU, "--", "--no-such-option"))

			before.check(t, p)
			p.Counter.Check()
			images = dumpPod(t, p)
			restorePod(t, p, images)
			p.Counter.CountsOn(20)
			p.Counter.Check()
			p.Counter.End(p.Data)
		})
	}
}

// A checkpoint that does not fit is refused, or fails, and leaves nothing.
func TestHandoverRestoreThatFails(t *testing.T) {
	p := rig.StartPod(t, rig.PodBindfs(t, "bindfs"), podClient)
	p.Counter.CountsOn(50)
	earlier := dumpPod(t, p, "--leave-running")
	p.Counter.CountsOn(20)
	images := dumpPod(t, p)
	fails := func(what string, status int, r rig.Result, words ...string) {
		t.Helper()
		if r.Status != status {
			t.Errorf("%s: exit status %d, want %d\n%s", what, r.Status, status, r.Stderr)
		}
		for _, w := range words {
			if !strings.Contains(r.Stderr, w) {
				t.Errorf("%s: it does not say %q:\n%s", what, w, r.Stderr)
			}
		}
		p.NotRunning()
		nothingLeft(t)
	}
	fails("the other strategy's option", 2, restorePodCommand(t, p, images, "--mount", "/mnt="+rig.BindfsCommand(p.Data)), "/mnt")

	// What a daemon negotiates can be said, but not what this kernel has not.
	fails("a flag that is none", 2, restorePodCommand(t, p, images, "--init", "async_reed"), "async_reed")
	fails("flags of another mount", 2, restorePodCommand(t, p, images, "--init", "/data:async_read"), "/data")
	fails("a flag that is not offered", 3, restorePodCommand(t, p, images, "--init", "map_alignment"), "map_alignment")

	// The images are of one checkpoint, the manifest of another.
	manifest := filepath.Join(images, "spfs.manifest")
	right, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := os.ReadFile(filepath.Join(earlier, "spfs.manifest"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		what    string
		content []byte
	}{{"another manifest", wrong}, {"a manifest cut short", right[:len(right)-1]}, {"a manifest that was changed", changed(right)}} {
		if err := os.WriteFile(manifest, m.content, 0o600); err != nil {
			t.Fatal(err)
		}
		fails(m.what, 3, restorePodCommand(t, p, images), images)
		fails(m.what+", by swap", 3, restorePodCommand(t, p, images, "--strategy", "swap"), images)
	}
	if err := os.WriteFile(manifest, right, 0o600); err != nil {
		t.Fatal(err)
	}

	daemon := filepath.Join(p.Root, "bin/bindfs")
	whole, err := os.ReadFile(daemon)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(daemon, whole[:len(whole)-1], 0o755); err != nil {
		t.Fatal(err)
	}
	fails("a daemon that changed", 1, restorePodCommand(t, p, images), "bindfs")
	if err := os.WriteFile(daemon, whole, 0o755); err != nil {
		t.Fatal(err)
	}
	fails("an option that is none", 1, rig.SPFS(t, "restore", "--images-dir", images, "--detach",
		"--criu", rig.Build(t).CRIU, "--", "--root", p.Root, "--no-such-option"))

	// It is the checkpoint that it was, and what was said of INIT holds.
	restorePod(t, p, images, "--init", "/mnt:max_write=65536,-async_read")
	p.Counter.CountsOn(50)
	again, err := os.ReadFile(filepath.Join(dumpPod(t, p, "--leave-running"), "spfs.manifest"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`"max_write": ?65536`).Match(again) {
		t.Errorf("the next manifest does not say that at most 65536 bytes are written at a time:\n%.2000s", again)
	}
	p.Counter.Check()
	p.Counter.End(p.Data)
}

// CRIU begins while the tree is being stopped, and need not begin again. On a busy
// machine that may take the keeper more than one attempt, so it may, now and then.
func TestHandoverStartsCRIUOnce(t *testing.T) {
	p := rig.StartPod(t, rig.PodBindfs(t, "bindfs"), rig.CounterOptions{FDs: 3, Quiet: true})
	dir := rig.Dir(t)
	criu, starts := filepath.Join(dir, "criu"), filepath.Join(dir, "starts")
	rig.Write(t, criu, fmt.Sprintf("#!/bin/sh\necho \"$1\" >> %s\nexec %s \"$@\"\n", starts, rig.Build(t).CRIU))
	if err := os.Chmod(criu, 0o755); err != nil {
		t.Fatal(err)
	}
	var started string
	for range 10 {
		images := rig.Mkdir(t, dir, "images")
		rig.SPFS(t, "dump", "--tree", itoa(p.PID), "--images-dir", images, "--leave-running", "--criu", criu).OK(t)
		b, err := os.ReadFile(starts)
		if err != nil {
			t.Fatal(err)
		}
		if started = string(b); started == "swrk\n" {
			break
		}
		os.RemoveAll(images)
		os.Remove(starts)
	}
	if started != "swrk\n" {
		t.Errorf("CRIU was started as %q, want one swrk", started)
	}
	p.Counter.CountsOn(20)
	p.Counter.Check()
}
