package swap

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verdict is the one word that decides a swap. Every stopped process maps its
// page; before the word is stored all of them would go back, after it all of
// them go forward, whatever becomes of the swapper: that single store is the
// commit.
type verdict struct {
	file *os.File
	page []byte
}

const (
	verdictBack    = 0
	verdictForward = 1

	verdictSize = 4096 // one page
)

// newVerdict makes a page that says "back".
func newVerdict() (*verdict, error) {
	fd, err := unix.MemfdCreate("spfs-verdict", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making the memfd of the verdict: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spfs-verdict")
	if err := f.Truncate(verdictSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("sizing the memfd of the verdict: %w", err)
	}
	page, err := unix.Mmap(fd, 0, verdictSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("mapping the verdict: %w", err)
	}
	return &verdict{file: f, page: page}, nil
}

// goForward commits. There is no way back from it.
func (v *verdict) goForward() {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&v.page[0])), verdictForward)
}

func (v *verdict) close() {
	unix.Munmap(v.page) // fails only for a wrong address
	v.file.Close()
}
