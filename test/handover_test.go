package test

import (
	"testing"

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
