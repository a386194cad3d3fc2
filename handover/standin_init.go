package handover

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// Flags of INIT that a daemon doesn't notice the lack of: without them the
// kernel sends requests that every daemon must know, or fewer at a time.
const mayMiss = uint64(fuse.CAP_ASYNC_READ | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_EXPORT_SUPPORT | fuse.CAP_BIG_WRITES |
	fuse.CAP_SPLICE_WRITE | fuse.CAP_SPLICE_MOVE | fuse.CAP_SPLICE_READ | fuse.CAP_AUTO_INVAL_DATA |
	fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO | fuse.CAP_WRITEBACK_CACHE |
	fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_PARALLEL_DIROPS | fuse.CAP_ABORT_ERROR | fuse.CAP_MAX_PAGES |
	fuse.CAP_CACHE_SYMLINKS | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_EXPLICIT_INVAL_DATA |
	fuse.CAP_INIT_EXT | fuse.CAP_INIT_RESERVED | fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_NO_EXPORT_SUPPORT |
	fuse.CAP_HAS_RESEND | fuse.CAP_REQUEST_TIMEOUT)

// What is negotiated if nobody knows what was: what any daemon works with.
// Large requests only fit into a daemon's buffer if it asked for them; the
// kernel's least is one page (fs/fuse/inode.c process_init_reply).
const (
	plainMinor    = 31
	plainMaxWrite = 4096
)

// init answers INIT with what the daemon and the old kernel had agreed on.
func (s *standIn) init(req fusedev.Request) func() {
	out, err := s.negotiate(req)
	s.initErr = err
	return func() {
		defer close(s.initial)
		if err != nil {
			s.refuse(req, unix.EPROTO)
			return
		}
		s.answer(req, raw(out))
	}
}

func (s *standIn) negotiate(req fusedev.Request) (*fuse.InitOut, error) {
	if !s.restore {
		return nil, fmt.Errorf("%w: it negotiates again", ErrKernel)
	}
	major, minor, readahead := req.U32(0), req.U32(4), req.U32(8) // fuse_init_in
	s.offered = uint64(req.U32(12))
	if s.offered&fuse.CAP_INIT_EXT != 0 {
		s.offered |= uint64(req.U32(16)) << 32
	}
	if major != 7 {
		return nil, fmt.Errorf("%w: it speaks version %d.%d of the protocol", ErrKernel, major, minor)
	}
	if s.offered&fuse.CAP_HAS_EXPIRE_ONLY == 0 {
		return nil, fmt.Errorf("%w: names can't be made to expire (FUSE_EXPIRE_ONLY, Linux 6.2)", ErrKernel)
	}
	r := s.rec.Init
	if !r.Known {
		return &fuse.InitOut{Major: 7, Minor: plainMinor, MaxReadAhead: readahead, Flags: fuse.CAP_BIG_WRITES,
			MaxWrite: plainMaxWrite, TimeGran: 1}, nil
	}
	if r.Flags&fuse.CAP_OVER_IO_URING != 0 {
		return nil, fmt.Errorf("%w: the daemon took requests through io_uring, which is not restored", ErrKernel)
	}
	if missing := r.Flags &^ s.offered &^ mayMiss; missing != 0 {
		return nil, fmt.Errorf("%w: it does not offer the INIT flags %#x that the daemon relies on", ErrKernel, missing)
	}
	flags := r.Flags
	if flags>>32 != 0 {
		flags |= fuse.CAP_INIT_EXT
	}
	return &fuse.InitOut{
		Major: 7, Minor: r.Minor, MaxReadAhead: r.MaxReadahead,
		Flags: uint32(flags), Flags2: uint32(flags >> 32),
		MaxBackground: r.MaxBackground, CongestionThreshold: r.CongestionThreshold,
		MaxWrite: r.MaxWrite, TimeGran: r.TimeGran, MaxPages: r.MaxPages, MaxStackDepth: r.MaxStackDepth,
	}, nil
}
