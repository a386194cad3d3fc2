package swap

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollRead is an epoll descriptor that has files of the file system
// registered, and all of its registrations.
type epollRead struct {
	ref     FDRef
	watches []watch
}

// registration is what an epoll has noted of a description: it is made anew
// for the new one, by the number that it was made by.
type registration struct {
	epoll       int // its descriptor, in the same table
	fd          int
	events      uint32
	data        uint64
	description *Description
}

// epollLink is what the link to an epoll says.
const epollLink = "anon_inode:[eventpoll]"

// readEpolls reads the epolls of a process that has files of the file system
// open: no other can have registered one that could be registered again.
//
// An epoll's fdinfo waits for its mutex (fs/eventpoll.c ep_show_fdinfo), and no
// signal ends that; which is held while a file that is being registered, or
// that is reported, is asked whether it is ready. A task that does so and waits
// for its file system keeps us from that.
func (s *scanner) readEpolls(w *reader, dir procDir, r *reading) {
	refs := r.kinds.epollFDs
	r.kinds.epollFDs = nil
	if !slices.ContainsFunc(r.tables, func(t tableRead) bool { return len(t.fds) > 0 }) {
		return
	}
	if len(refs) > 0 && s.waitsInEpoll(w, dir, r.process) {
		for _, ref := range refs {
			r.obstacle(fmt.Sprintf("fd %d (epoll)", ref.FD), "it can't be read: a task of the process asks a file system in it, and waits", stuckRemedy)
		}
		return
	}
	for _, ref := range refs {
		text, err := dir.record(ref.below()+"fdinfo/"+strconv.Itoa(ref.FD), w.small)
		if err != nil {
			continue // closed meanwhile
		}
		info, err := parseFDInfo(text)
		if err != nil {
			r.obstacle(fmt.Sprintf("fd %d", ref.FD), fmt.Sprintf("the kernel's description of it is strange (%v)", err), "report this")
			continue
		}
		s.readKind(&r.kinds, r.process, ref, &info)
	}
}

// waitsInEpoll says whether a task of a process is in a call on an epoll and
// waits there for a FUSE daemon.
func (s *scanner) waitsInEpoll(w *reader, dir procDir, p *Process) bool {
	for _, tid := range p.Tasks {
		task := Task{p.PID, tid}
		text, err := dir.record(task.below()+"syscall", w.small)
		if err != nil {
			continue
		}
		number, _, _ := bytes.Cut(text, []byte(" "))
		if nr, err := strconv.Atoi(string(number)); err != nil || !slices.Contains(epollCalls, nr) {
			continue
		}
		where, err := dir.record(task.below()+"wchan", w.small)
		if err == nil && (bytes.Contains(where, []byte("fuse")) || bytes.HasPrefix(where, []byte("request_wait_answer"))) {
			return true
		}
	}
	return false
}

// addEpolls gives the registrations to the tables that can make them anew.
// One can be changed only through the number that it was made by, as long as
// that number is still the file (fs/eventpoll.c ep_find).
func (a *assembly) addEpolls(readings []*reading) {
	var reads []epollRead
	for _, r := range readings {
		reads = append(reads, r.kinds.epolls...)
	}
	found := classes(reads, func(x, y epollRead) (int, error) {
		return kcmp(x.ref.TID, y.ref.TID, kcmpFile, x.ref.FD, y.ref.FD)
	})
	for _, class := range found {
		before := map[int]int{} // registrations by the same number
		for _, w := range class[0].watches {
			nth := before[w.fd]
			before[w.fd]++
			if (!w.hasDev || w.sdev == kernelDev(a.dev)) && !a.register(class, w, nth) {
				a.lostRegistration(class, w, readings)
			}
		}
	}
}

// register finds who can make the nth registration by its number anew.
func (a *assembly) register(class []epollRead, w watch, nth int) bool {
	for _, r := range class {
		for _, t := range a.Tables {
			if !t.has(r.ref.Task) {
				continue
			}
			for _, fd := range t.FDs {
				if fd.Num == w.fd && isRegistered(r.ref, w.fd, nth) {
					t.epolls = append(t.epolls, registration{r.ref.FD, w.fd, w.events, w.data, fd.Description})
					return true
				}
			}
		}
	}
	return false
}

// isRegistered says whether the nth registration by a number in an epoll is of
// what the number is in the same table.
func isRegistered(epoll FDRef, fd, nth int) bool {
	const kcmpEpollTFD = 7                                                             // include/uapi/linux/kcmp.h
	slot := struct{ efd, tfd, toff uint32 }{uint32(epoll.FD), uint32(fd), uint32(nth)} // struct kcmp_epoll_slot
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(epoll.TID), uintptr(epoll.TID), kcmpEpollTFD,
		uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	return errno == 0 && r == 0
}

func (a *assembly) lostRegistration(class []epollRead, w watch, readings []*reading) {
	for _, r := range class {
		if !a.members.Has(r.ref.PID) {
			continue
		}
		for _, reading := range readings {
			if reading.process.PID == r.ref.PID {
				a.Obstacles = append(a.Obstacles, reading.process.obstacle(fmt.Sprintf("fd %d (epoll)", r.ref.FD),
					fmt.Sprintf("a file of the mount is registered with it by the number %d, which is that file no more, or is another process's", w.fd),
					"close the file, or stop the process"))
				return
			}
		}
	}
}
