package mounts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// Watch holds the mount tables of the whole machine, to look at them again for
// a few system calls where nothing has changed. It owns the namespaces until
// Close, and is used by one goroutine at a time.
type Watch struct {
	spaces []*Space
	known  map[uint64]bool // namespaces by the number that is never given again; nil before Linux 6.12
}

// Space is a mount namespace and what is mounted in it.
type Space struct {
	Namespace *Namespace
	Table     Table
	Err       error // why Table is not known

	info *os.File // mountinfo, as seen from the namespace's root
}

// NewWatch reads the mount tables of every namespace of the machine. The
// caller closes the Watch.
func NewWatch(ctx context.Context) (*Watch, error) {
	own, err := Own()
	if err != nil {
		return nil, fmt.Errorf("own mount namespace: %w", err)
	}
	w := &Watch{known: map[uint64]bool{}}
	w.add(own)
	fresh, err := w.unknown(ctx)
	if errors.Is(err, unix.ENOTTY) { // before Linux 6.12 there is no list
		w.known = nil
		fresh, err = w.unknown(ctx)
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	for _, ns := range fresh {
		w.add(ns)
	}
	return w, nil
}

// Spaces returns the namespaces, the caller's own first. They are the
// Watch's.
func (w *Watch) Spaces() []*Space { return w.spaces }

// Close lets the namespaces go.
func (w *Watch) Close() {
	for _, s := range w.spaces {
		s.close()
	}
	w.spaces = nil
}

func (s *Space) close() {
	if s.info != nil {
		s.info.Close()
	}
	s.Namespace.Close()
}

// add takes ns over and reads its table.
func (w *Watch) add(ns *Namespace) {
	s := &Space{Namespace: ns}
	w.spaces = append(w.spaces, s)
	s.Err = ns.Do(func(proc *os.File) error {
		name := "self/task/" + strconv.Itoa(unix.Gettid()) + "/mountinfo"
		fd, err := unix.Openat(int(proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /proc/%s: %w", name, err)
		}
		s.info = os.NewFile(uintptr(fd), "/proc/"+name)
		return nil
	})
	if s.Err == nil {
		s.read()
	}
}

func (s *Space) read() {
	if _, s.Err = s.info.Seek(0, io.SeekStart); s.Err == nil {
		s.Table, s.Err = parseTable(s.info)
	}
	if s.Err != nil {
		s.Table, s.Err = nil, fmt.Errorf("mounts of %v: %w", s.Namespace, s.Err)
	}
}

// Refresh brings the tables up to date. A table in which nothing was mounted,
// unmounted or given other options stays the same Table. Namespaces that are
// new it finds in the kernel's list of them; before Linux 6.12 it uses [List].
func (w *Watch) Refresh(ctx context.Context) error {
	fresh, err := w.unknown(ctx)
	if err != nil {
		return err
	}
	w.reread()
	for _, ns := range fresh {
		w.add(ns)
	}
	return nil
}

// reread reads the tables that have changed since they were read last. Which
// have, poll(2) tells of an open mountinfo (fs/proc_namespace.c mounts_poll):
// POLLPRI once after each change.
func (w *Watch) reread() {
	var fds []unix.PollFd
	var polled []*Space
	for _, s := range w.spaces {
		if s.info != nil {
			fds = append(fds, unix.PollFd{Fd: int32(s.info.Fd()), Events: unix.POLLPRI})
			polled = append(polled, s)
		}
	}
	_, err := eintr.Get(func() (int, error) { return unix.Poll(fds, 0) })
	for i, s := range polled {
		if err != nil || s.Err != nil || fds[i].Revents&(unix.POLLPRI|unix.POLLERR) != 0 {
			s.read()
		}
	}
}

// unknown returns the namespaces that the Watch does not have.
func (w *Watch) unknown(ctx context.Context) ([]*Namespace, error) {
	var fresh []*Namespace
	if w.known != nil {
		err := walkNamespaces(w.spaces[0].Namespace, func(id uint64, open func() (*Namespace, error)) error {
			if w.known[id] {
				return nil
			}
			ns, err := open()
			if err == nil {
				w.known[id] = true
				fresh = append(fresh, ns)
			}
			return err
		})
		if err != nil {
			for _, ns := range fresh {
				ns.Close()
			}
			return nil, fmt.Errorf("list of mount namespaces: %w", err)
		}
		return w.withoutKnown(fresh), nil
	}
	all, err := List(ctx)
	if err != nil {
		return nil, err
	}
	return w.withoutKnown(all), nil
}

// withoutKnown closes those that the Watch has, and returns the others.
func (w *Watch) withoutKnown(all []*Namespace) []*Namespace {
	have := map[uint64]bool{}
	for _, s := range w.spaces {
		have[s.Namespace.Inode] = true
	}
	var others []*Namespace
	for _, ns := range all {
		if have[ns.Inode] {
			ns.Close()
			continue
		}
		others = append(others, ns)
	}
	return others
}

// namespaceInfo is struct mnt_ns_info of include/uapi/linux/nsfs.h.
type namespaceInfo struct {
	size   uint32
	mounts uint32
	id     uint64 // unique until the next boot
}

// namespaceInfoOf is NS_MNT_GET_INFO (Linux 6.12).
const namespaceInfoOf = 2<<30 | 16<<16 | 0xb7<<8 | 10

// walkNamespaces calls fn for every namespace that the kernel lists, from's
// own among them, with its number and a function that keeps it. It fails where
// the kernel has no such list.
func walkNamespaces(from *Namespace, fn func(id uint64, open func() (*Namespace, error)) error) error {
	var info namespaceInfo
	info.size = uint32(unsafe.Sizeof(info))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, from.File.Fd(), namespaceInfoOf, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return errno
	}
	if err := fn(info.id, func() (*Namespace, error) { return dupNamespace(int(from.File.Fd())) }); err != nil {
		return err
	}
	for _, direction := range []uintptr{nextNamespace, previousNamespace} {
		at, err := unix.FcntlInt(from.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		for err == nil {
			var next uintptr
			var errno unix.Errno
			info.size = uint32(unsafe.Sizeof(info))
			next, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(at), direction, uintptr(unsafe.Pointer(&info)))
			unix.Close(at)
			if errno != 0 {
				err = errno
				break
			}
			at = int(next)
			if err = fn(info.id, func() (*Namespace, error) { return dupNamespace(at) }); err != nil {
				unix.Close(at)
			}
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func dupNamespace(fd int) (*Namespace, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newNamespace(os.NewFile(uintptr(own), "mnt:[next]"))
}
