package criuhook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

// treeMount is one FUSE mount in the mount namespace of the tree's root.
type treeMount struct {
	*mountinfo.Info
	key string // for CRIU's --external
}

func (m *treeMount) dev() uint64 { return unix.Mkdev(uint32(m.Major), uint32(m.Minor)) }

// isFUSE tells FUSE's file system types, with and without a subtype, from
// fusectl and the like (fs/fuse/inode.c: fuse_fs_type, fuseblk_fs_type).
func isFUSE(fstype string) bool {
	kind, _, _ := strings.Cut(fstype, ".")
	return kind == "fuse" || kind == "fuseblk"
}

// fuseMounts lists the FUSE mounts in the mount namespace of a process, each
// with a key of its own.
func fuseMounts(pid int) ([]treeMount, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, fmt.Errorf("the mounts of process %d: %w", pid, err)
	}
	defer f.Close()
	all, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("the mounts of process %d: %w", pid, err)
	}
	var mounted []treeMount
	for _, m := range all {
		if isFUSE(m.FSType) {
			mounted = append(mounted, treeMount{m, fmt.Sprintf("spfs-%d", len(mounted))})
		}
	}
	return mounted, nil
}

// tree lists the processes of a tree, the root first.
func tree(root int) ([]int, error) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		// A child is listed under the thread that made it.
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			return nil, err
		}
		if i == 0 && len(lists) == 0 {
			return nil, fmt.Errorf("there is no process %d", root)
		}
		for _, l := range lists {
			b, err := os.ReadFile(l)
			if err != nil {
				continue // the thread ended since
			}
			for _, s := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(s)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", l, err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// describe names a process in a message.
func describe(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return strconv.Itoa(pid)
	}
	return fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(comm)))
}

// servesFUSE tells whether one of the processes serves a FUSE connection.
func servesFUSE(pids []int) (bool, error) {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // it ended since
			}
			return false, fmt.Errorf("the descriptors of process %s: %w", describe(pid), err)
		}
		for _, fd := range fds {
			link, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil || !strings.HasSuffix(link, "/fuse") {
				continue
			}
			info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
			if err != nil {
				continue
			}
			if _, ok := fuseConnection(string(info)); ok {
				return true, nil
			}
		}
	}
	return false, nil
}

// fuseConnection returns the number in fdinfo's "fuse_connection:" line
// (fs/fuse/dev.c: fuse_dev_show_fdinfo), which is the minor of the mount's
// st_dev. Only an open /dev/fuse that is mounted has one.
func fuseConnection(fdinfo string) (minor int, ok bool) {
	for _, line := range strings.Split(fdinfo, "\n") {
		if v, found := strings.CutPrefix(line, "fuse_connection:"); found {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return n, err == nil
		}
	}
	return 0, false
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
	fields, err := statFields(pid)
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
		return fmt.Errorf("process %s is a thread of the kernel", describe(pid))
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	if tracer := statusField(string(status), "TracerPid"); tracer != "" && tracer != "0" {
		n, _ := strconv.Atoi(tracer)
		return fmt.Errorf("process %s is being traced by process %s, so CRIU cannot stop it; end that first", describe(pid), describe(n))
	}
	return nil
}

// statusField returns a field of /proc/PID/status.
func statusField(status, name string) string {
	for _, line := range strings.Split(status, "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// statFields returns the fields of /proc/PID/stat from the 3rd on: the 2nd is
// in parentheses and may hold anything.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	return fields, nil
}
