package rig

import (
	"errors"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapFile maps the first size bytes of a file, growing it to that, shared and
// writable until t ends.
func mapFile(t T, path string, size int) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		t.Fatalf("%v", err)
	} else if st.Size() < int64(size) {
		if err := f.Truncate(int64(size)); err != nil {
			t.Fatalf("%v", err)
		}
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatalf("map %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return m
}

// FUTEX_WAIT and FUTEX_WAKE of include/uapi/linux/futex.h. Not their private
// kinds: the other side is another process.
const (
	futexOpWait = 0
	futexOpWake = 1
)

// futexWait sleeps until word is woken, if it still holds value, for at most d.
func futexWait(word *atomic.Uint32, value uint32, d time.Duration) error {
	ts := unix.NsecToTimespec(int64(d))
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)),
		futexOpWait, uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 && !errors.Is(errno, unix.EAGAIN) && !errors.Is(errno, unix.EINTR) {
		return errno
	}
	return nil
}

func futexWake(word *atomic.Uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexOpWake, 1, 0, 0, 0)
}

// cString is b up to its first zero byte.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
