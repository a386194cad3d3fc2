package mounts

import (
	"context"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// found lists the namespaces by inode.
func found(t *testing.T) map[uint64][]int {
	t.Helper()
	all, err := List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[uint64][]int{}
	for _, ns := range all {
		inodes[ns.Inode] = ns.PIDs
		ns.Close()
	}
	if all[0].Inode != own(t).Inode {
		t.Error("the own namespace is not the first")
	}
	return inodes
}

func TestListFindsProcessesAndBindMounts(t *testing.T) {
	other := holder(t, 0)
	pids, ok := found(t)[other.Inode]
	if !ok || !slices.Contains(pids, other.PIDs[0]) {
		t.Fatalf("namespace %v of process %v: found %v %v", other, other.PIDs, ok, pids)
	}

	// One that only a bind mount keeps.
	file := t.TempDir() + "/ns"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var inode uint64
	// fs/namespace.c mnt_ns_loop refuses namespaces older than the binder's,
	// by a number that newer kernels draw from a pool per processor: try on.
	err := unix.EINVAL
	for try := 0; err == unix.EINVAL && try < 100; try++ {
		t.Run("keep", func(t *testing.T) {
			kept := holder(t, 0) // ends with this subtest
			err, _ = unix.Mount(procPath(kept.File), file, "", unix.MS_BIND, "").(unix.Errno)
			inode = kept.Inode
		})
	}
	if err != 0 {
		t.Fatal("bind mount of a namespace:", err)
	}
	defer unix.Unmount(file, unix.MNT_DETACH)
	if pids, ok := found(t)[inode]; !ok || len(pids) != 0 {
		t.Errorf("namespace kept by a bind mount: found %v, processes %v", ok, pids)
	}

	// The way of kernels before 6.12 finds it too.
	ns := own(t)
	l := &lister{seen: map[uint64]*Namespace{ns.Inode: ns}, found: []*Namespace{ns}}
	l.fromBindMounts()
	if l.seen[inode] == nil {
		t.Error("bind mounts of namespaces are not found without the kernel's list")
	}
	for _, ns := range l.found[1:] {
		ns.Close()
	}
}

func TestDoLeavesTheCallerWhereItIs(t *testing.T) {
	other := holder(t, 0)
	before := own(t).Inode
	for range 20 {
		err := other.Do(func(*os.File) error {
			if inode, _ := namespaceLink("/proc/thread-self/ns/mnt"); inode != other.Inode {
				t.Errorf("inside: namespace %d, want %d", inode, other.Inode)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if now := own(t).Inode; now != before {
			t.Fatalf("outside: namespace %d, was %d", now, before)
		}
	}
}
