package devfuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is one descriptor of an open /dev/fuse.
type Holder struct {
	PID, FD     int
	CloseOnExec bool
}

// Description is one open file description of /dev/fuse that is mounted.
type Description struct {
	Connection uint64 // the minor of its mount's st_dev
	Flags      int    // of fcntl(2)'s F_GETFL
	Holders    []Holder

	file        *os.File // a copy; see Take
	placeholder *os.File
	key         string
}

// Find returns the mounted /dev/fuse descriptions of the processes. A process
// that ends meanwhile is left out. A thread that has a descriptor table of its
// own with such a descriptor is an error, since CRIU can't dump it.
func Find(pids []int) ([]*Description, error) {
	var found []*Description
	for _, pid := range pids {
		fds, err := devices(fmt.Sprintf("/proc/%d", pid))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the descriptors of process %d: %w", pid, err)
		}
		if err := ownTables(pid); err != nil {
			return nil, err
		}
		for _, d := range fds {
			d.Holders[0].PID = pid
			if known := same(found, d); known != nil {
				known.Holders = append(known.Holders, d.Holders[0])
			} else {
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// devices lists the descriptors of one table, each as a description.
func devices(dir string) ([]*Description, error) {
	d, err := os.Open(dir + "/fd")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found []*Description
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		link, err := os.Readlink(dir + "/fd/" + name)
		if err != nil || !strings.Contains(link, "fuse") {
			continue // closed since; whatever it is called, devtmpfs calls it fuse
		}
		text, err := os.ReadFile(dir + "/fdinfo/" + name)
		if err != nil {
			continue
		}
		if one, ok := parse(string(text)); ok {
			one.Holders[0].FD = fd
			found = append(found, one)
		}
	}
	return found, nil
}

// parse reads /proc/PID/fdinfo/N (fs/proc/fd.c seq_show, fs/fuse/dev.c
// fuse_dev_show_fdinfo). Only a /dev/fuse that is mounted has a connection.
func parse(fdinfo string) (d *Description, ok bool) {
	d = &Description{Holders: make([]Holder, 1)}
	for line := range strings.Lines(fdinfo) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		var err error
		switch key {
		case "flags":
			var flags int64
			flags, err = strconv.ParseInt(value, 8, 64)
			d.Flags = int(flags) &^ unix.O_CLOEXEC
			d.Holders[0].CloseOnExec = flags&unix.O_CLOEXEC != 0
		case "fuse_connection":
			d.Connection, err = strconv.ParseUint(value, 10, 64)
			ok = true
		}
		if err != nil {
			return nil, false
		}
	}
	return d, ok
}

// same returns the description that is d's among those found.
func same(found []*Description, d *Description) *Description {
	for _, f := range found {
		if f.Connection != d.Connection {
			continue
		}
		a, b := f.Holders[0], d.Holders[0]
		const kcmpFile = 0 // KCMP_FILE: include/uapi/linux/kcmp.h
		differ, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a.PID), uintptr(b.PID), kcmpFile, uintptr(a.FD), uintptr(b.FD), 0)
		if errno == 0 && differ == 0 {
			return f
		}
	}
	return nil
}

// ownTables returns an error if a thread has a table of its own with a mounted
// /dev/fuse in it.
func ownTables(pid int) error {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	d, err := os.Open(dir)
	if err != nil {
		return nil // it has ended
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil
	}
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil || tid == pid {
			continue
		}
		const kcmpFiles = 2 // KCMP_FILES
		differ, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(tid), kcmpFiles, 0, 0, 0)
		if errno != 0 || differ == 0 {
			continue
		}
		if own, err := devices(dir + "/" + name); err == nil && len(own) > 0 {
			return fmt.Errorf("thread %d of process %d has a descriptor table of its own with /dev/fuse in it (descriptor %d), which can't be dumped",
				tid, pid, own[0].Holders[0].FD)
		}
	}
	return nil
}
