package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// Namespace is one mount namespace of the machine.
type Namespace struct {
	Inode uint64   // of its nsfs file: tells namespaces apart
	File  *os.File // open on it (as /proc/PID/ns/mnt), for setns(2)
	PIDs  []int    // processes seen in it; empty if only a bind mount or a descriptor keeps it
}

// Own returns the caller's mount namespace.
func Own() (*Namespace, error) {
	return openNamespace(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
}

func openNamespace(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return newNamespace(f)
}

// newNamespace takes f over.
func newNamespace(f *os.File) (*Namespace, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount namespace %s: %w", f.Name(), err)
	}
	return &Namespace{Inode: st.Ino, File: f}, nil
}

// Close lets the namespace go. It may be called more than once.
func (ns *Namespace) Close() error {
	if ns.File == nil {
		return nil
	}
	err := ns.File.Close()
	ns.File = nil
	return err
}

// String names the namespace as the kernel's links do.
func (ns *Namespace) String() string { return fmt.Sprintf("mnt:[%d]", ns.Inode) }

// Do runs fn on a thread that is in the namespace, with the namespace's root
// as root and working directory. The thread ends with fn. fn must not start
// goroutines that count on being there. proc is the directory /proc as the
// caller sees it, opened before: the namespace may have none.
func (ns *Namespace) Do(fn func(proc *os.File) error) error {
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer proc.Close()
	return thread.Run(func() error {
		// setns(2) wants an fs_struct that no other thread shares
		// (fs/namespace.c mntns_install).
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare(CLONE_FS): %w", err)
		}
		if err := unix.Setns(int(ns.File.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace %v: %w", ns, err)
		}
		return fn(proc)
	})
}
