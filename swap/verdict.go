package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verdict is the one word that decides a swap. Every batch reads it; before the
// word is stored all of them would go back, after it all of them go forward,
// whatever becomes of the swapper: that single store is the commit.
//
// It is a file in the journal, mapped, so that it also outlives everyone.
type verdict struct {
	file *os.File // for the batches: to read only
	page []byte
}

const (
	verdictBack    = 0
	verdictForward = 1

	verdictSize = 4096 // one page
	verdictName = "verdict"
)

// newVerdict makes a page in the directory that says "back".
func newVerdict(dir string) (*verdict, error) {
	path := filepath.Join(dir, verdictName)
	w, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the verdict: %w", err)
	}
	defer w.Close()
	// Allocated, so that the store can't fail for want of memory.
	if err := unix.Fallocate(int(w.Fd()), 0, 0, verdictSize); err != nil {
		return nil, fmt.Errorf("sizing the verdict: %w", err)
	}
	page, err := unix.Mmap(int(w.Fd()), 0, verdictSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mapping the verdict: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		unix.Munmap(page)
		return nil, fmt.Errorf("opening the verdict: %w", err)
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

// readVerdict says whether a run that was cut off had committed.
func readVerdict(dir string) (forward bool, err error) {
	f, err := os.OpenFile(filepath.Join(dir, verdictName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the verdict: %w", err)
	}
	defer f.Close()
	return wordOf(f)
}

// wordOf says whether the verdict in a file is "forward".
func wordOf(f *os.File) (forward bool, err error) {
	var word [4]byte
	if _, err := f.ReadAt(word[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("reading the verdict: %w", err)
	}
	return binary.NativeEndian.Uint32(word[:]) == verdictForward, nil
}
