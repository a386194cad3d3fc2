package fusestate

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// beClient does what it is told ("WHAT=ARGUMENT"), says where everything is,
// and waits until nobody needs it any more.
func beClient(todo []string) int {
	var told told
	for _, do := range todo {
		what, argument, _ := strings.Cut(do, "=")
		if err := told.do(what, argument); err != nil {
			fmt.Fprintf(os.Stderr, "client: %s: %v\n", do, err)
			return 1
		}
	}
	json.NewEncoder(os.Stdout).Encode(told)
	for _, do := range told.last {
		go do() // a thread may stick in it
	}
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func (t *told) do(what, argument string) error {
	open := func(flags int) error {
		fd, err := unix.Open(argument, flags|unix.O_CLOEXEC, 0)
		t.FDs = append(t.FDs, fd)
		return err
	}
	last := func() int { return t.FDs[len(t.FDs)-1] }
	number, _ := strconv.Atoi(argument)
	switch what {
	case "rdonly":
		return open(unix.O_RDONLY)
	case "rdwr":
		return open(unix.O_RDWR)
	case "append":
		return open(unix.O_WRONLY | unix.O_APPEND)
	case "path":
		return open(unix.O_PATH)
	case "seek": // in the last opened
		_, err := unix.Seek(last(), int64(number), unix.SEEK_SET)
		return err
	case "dup": // the last opened
		fd, err := unix.Dup(last())
		t.FDs = append(t.FDs, fd)
		return err
	case "map": // that many pages of the last opened, one by one
		for i := range number {
			// Every other, or they could be one mapping.
			at := int64(2*i) * int64(unix.Getpagesize())
			address, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(unix.Getpagesize()),
				unix.PROT_READ, unix.MAP_PRIVATE, uintptr(last()), uintptr(at))
			if errno != 0 {
				return errno
			}
			t.Addresses = append(t.Addresses, uint64(address))
		}
		return nil
	case "stick": // to mmap_lock, until a WRITE to the last opened is answered
		page, err := unix.Mmap(last(), 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		page[0] = 1
		// What goes away beneath the new mapping is written first, with the
		// lock held (fs/fuse/file.c fuse_vma_close).
		t.last = append(t.last, func() {
			unix.MmapPtr(-1, 0, unsafe.Pointer(&page[0]), uintptr(len(page)), unix.PROT_NONE,
				unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
		})
		return nil
	case "lock": // the last opened
		return unix.FcntlFlock(uintptr(last()), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	case "epoll": // that many
		for range number {
			if _, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
				return err
			}
		}
		return nil
	case "chdir":
		return unix.Chdir(argument)
	}
	return fmt.Errorf("unknown")
}
