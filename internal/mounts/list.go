package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// List returns every mount namespace of the machine that can be found: those
// of all tasks, and those that only a bind mount or a descriptor keeps. The
// caller's own is the first. The caller closes each.
func List(ctx context.Context) ([]*Namespace, error) {
	own, err := Own()
	if err != nil {
		return nil, fmt.Errorf("own mount namespace: %w", err)
	}
	l := &lister{seen: map[uint64]*Namespace{own.Inode: own}, found: []*Namespace{own}}
	if err := l.fromTasks(ctx); err != nil {
		l.close()
		return nil, err
	}
	if err := l.fromKernel(own); err != nil {
		// Before Linux 6.12 the kernel does not list them.
		l.fromBindMounts()
	}
	return l.found, nil
}

type lister struct {
	seen  map[uint64]*Namespace
	found []*Namespace
}

func (l *lister) close() {
	for _, ns := range l.found {
		ns.Close()
	}
}

// add takes ns over: it is closed if its namespace is known.
func (l *lister) add(ns *Namespace) *Namespace {
	if known := l.seen[ns.Inode]; known != nil {
		ns.Close()
		return known
	}
	l.seen[ns.Inode] = ns
	l.found = append(l.found, ns)
	return ns
}

// fromTasks looks at every task: threads may have a namespace of their own.
func (l *lister) fromTasks(ctx context.Context) error {
	pids, err := numericNames("/proc")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := "/proc/" + strconv.Itoa(pid) + "/task/"
		tids, err := numericNames(dir)
		if err != nil {
			continue // gone
		}
		for _, tid := range tids {
			l.fromTask(pid, dir+strconv.Itoa(tid)+"/ns/mnt")
		}
	}
	return nil
}

func (l *lister) fromTask(pid int, link string) {
	// A link that can't be read is a task that is gone, or a zombie, which
	// is in no namespace any more.
	inode, ok := bounded(func() (uint64, error) { return namespaceLink(link) })
	if !ok {
		return
	}
	ns := l.seen[inode]
	if ns == nil {
		opened, ok := bounded(func() (*Namespace, error) { return openNamespace(link) })
		if !ok {
			return
		}
		ns = l.add(opened)
	}
	if n := len(ns.PIDs); n == 0 || ns.PIDs[n-1] != pid {
		ns.PIDs = append(ns.PIDs, pid)
	}
}

// bounded calls a function that may hang, and leaves it behind if it does: a
// task that waits for a file system in an exec, say, holds exec_update_lock,
// for which looking at its namespaces waits (fs/proc/namespaces.c
// proc_ns_readlink, kernel/ptrace.c).
func bounded[T any](call func() (T, error)) (T, bool) {
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	go func() {
		v, err := call()
		results <- result{v, err}
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case r := <-results:
		return r.value, r.err == nil
	case <-late.C:
		var none T
		return none, false
	}
}

// patience is how long a task is waited for that nobody else keeps waiting.
const patience = 200 * time.Millisecond

// namespaceLink reads the inode out of a link to "mnt:[INODE]".
func namespaceLink(path string) (uint64, error) {
	var buf [64]byte
	n, err := unix.Readlink(path, buf[:])
	if err != nil {
		return 0, err
	}
	inode, ok := parseNamespaceName(string(buf[:n]))
	if !ok {
		return 0, fmt.Errorf("%s: %q is no mount namespace", path, buf[:n])
	}
	return inode, nil
}

func parseNamespaceName(s string) (uint64, bool) {
	s, ok := strings.CutPrefix(s, "mnt:[")
	if !ok {
		return 0, false
	}
	s, ok = strings.CutSuffix(s, "]")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(s, 10, 64)
	return inode, err == nil
}

// nextNamespace and previousNamespace are NS_MNT_GET_NEXT and NS_MNT_GET_PREV
// of include/uapi/linux/nsfs.h (Linux 6.12): _IOR(0xb7, 11 and 12, struct
// mnt_ns_info), of 16 bytes.
const (
	nextNamespace     = 2<<30 | 16<<16 | 0xb7<<8 | 11
	previousNamespace = 2<<30 | 16<<16 | 0xb7<<8 | 12
)

// fromKernel walks the kernel's own list both ways from own. It fails where
// the kernel has no such call.
func (l *lister) fromKernel(own *Namespace) error {
	for _, direction := range []uintptr{nextNamespace, previousNamespace} {
		at := own
		for {
			// fs/nsfs.c ns_ioctl: the result is a descriptor; ENOENT at the end.
			fd, _, errno := unix.Syscall(unix.SYS_IOCTL, at.File.Fd(), direction, 0)
			if errno == unix.ENOENT {
				break
			}
			if errno != 0 {
				return errno
			}
			unix.CloseOnExec(int(fd))
			ns, err := newNamespace(os.NewFile(fd, "mnt:[next]"))
			if err != nil {
				return err
			}
			at = l.add(ns)
		}
	}
	return nil
}

// fromBindMounts looks for bind mounts of namespaces in all that are known,
// and in those that this brings.
func (l *lister) fromBindMounts() {
	for i := 0; i < len(l.found); i++ {
		table, err := l.found[i].Mounts()
		if err != nil {
			continue
		}
		for _, m := range table {
			inode, ok := parseNamespaceName(m.Root)
			if m.FSType != "nsfs" || !ok || l.seen[inode] != nil || table.throughFUSE(m) {
				continue
			}
			var opened *Namespace
			err := l.found[i].Do(func(*os.File) (err error) {
				opened, err = openNamespace(m.Point)
				return err
			})
			if err == nil {
				l.add(opened)
			}
		}
	}
}

// numericNames lists the entries of dir that are numbers.
func numericNames(dir string) ([]int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	numbers := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}
