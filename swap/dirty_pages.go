package swap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapPresent  = 1 << 63
	pagemapSwapped  = 1 << 62
	pagemapFilePage = 1 << 61 // a page of the file, not the process's own
)

// pageRun is a run of neighbouring pages, as byte addresses.
type pageRun struct{ start, end uint64 }

// privatePages lists the pages of [start, end) that a private mapping has
// copied away from its file: those in memory or swapped out that are not the
// file's. pagemap is an open /proc/PID/pagemap; addresses are page aligned.
func privatePages(pagemap io.ReaderAt, start, end uint64) ([]pageRun, error) {
	pageSize := uint64(os.Getpagesize())
	var runs []pageRun
	buf := make([]byte, 64<<10)
	for at := start; at < end; {
		want := min(uint64(len(buf)), (end-at)/pageSize*8)
		n, err := pagemap.ReadAt(buf[:want], int64(at/pageSize*8))
		if n < 8 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("reading the pagemap at %#x: %w", at, err)
		}
		for i := 0; i+8 <= n; i += 8 {
			e := binary.NativeEndian.Uint64(buf[i:])
			if e&(pagemapPresent|pagemapSwapped) != 0 && e&pagemapFilePage == 0 {
				if k := len(runs) - 1; k >= 0 && runs[k].end == at {
					runs[k].end += pageSize
				} else {
					runs = append(runs, pageRun{at, at + pageSize})
				}
			}
			at += pageSize
		}
	}
	return runs, nil
}

// memory is a process's memory, as /proc/PID/mem gives it: protections do not
// bind it (FOLL_FORCE), as mm/gup.c allows for private mappings.
type memory interface {
	ReadMem(addr uint64, buf []byte) error
	WriteMem(addr uint64, buf []byte) error
}

// copyRuns copies the bytes of runs to the same offsets from to as they have
// from start, in one process.
func copyRuns(mem memory, runs []pageRun, start, to uint64) error {
	const chunk = 256 << 10
	buf := make([]byte, chunk)
	for _, r := range runs {
		for at := r.start; at < r.end; {
			b := buf[:min(chunk, r.end-at)]
			if err := mem.ReadMem(at, b); err != nil {
				return fmt.Errorf("reading private pages at %#x: %w", at, err)
			}
			if err := mem.WriteMem(to+(at-start), b); err != nil {
				return fmt.Errorf("copying private pages from %#x: %w", at, err)
			}
			at += uint64(len(b))
		}
	}
	return nil
}
