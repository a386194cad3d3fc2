package criuhook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"spfs/internal/mounts"
	"spfs/internal/proctree"
)

// treeMount is one FUSE mount in the mount namespace of the tree's root.
type treeMount struct {
	*mounts.Mount
	key string // for CRIU's --external
}

// fuseMounts lists the FUSE mounts in the mount namespace of a process, each
// with a key of its own.
func fuseMounts(pid int) (mounted []treeMount, err error) {
	all, err := mounts.Of(pid)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.FUSE() {
			mounted = append(mounted, treeMount{m, fmt.Sprintf("spfs-%d", len(mounted))})
		}
	}
	return mounted, nil
}

// ownNamespace tells whether a process has a mount namespace other than the
// caller's.
func ownNamespace(pid int) (bool, error) {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return false, fmt.Errorf("the mount namespace of process %d: %w", pid, err)
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	return theirs != ours, nil
}

// inNamespace calls fn on a thread that is in the mount namespace of a
// process, at the root of the namespace.
func inNamespace(pid int, fn func() error) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return fmt.Errorf("the mount namespace of process %d: %w", pid, err)
	}
	defer f.Close()
	ns := mounts.Namespace{File: f}
	return ns.Do(func(*os.File) error { return fn() })
}

// pfKthread is PF_KTHREAD of include/linux/sched.h.
const pfKthread = 0x00200000

// refuseProcess returns an error if CRIU cannot stop a process.
func refuseProcess(pid int) error {
	fields, err := proctree.Stat(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it ended since
	}
	if err != nil {
		return err
	}
	flags, err := strconv.ParseUint(fields[6], 10, 32) // the 9th of proc_pid_stat(5)
	if err != nil {
		return fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	if flags&pfKthread != 0 {
		return fmt.Errorf("process %s is a thread of the kernel", proctree.Name(pid))
	}
	if tracer, err := proctree.Tracer(pid); err == nil && tracer != 0 {
		return fmt.Errorf("process %s is being traced by process %s, so CRIU cannot stop it; end that first", proctree.Name(pid), proctree.Name(tracer))
	}
	return nil
}
