package fuseinit

import (
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"

	"spfs/internal/fusedev"
)

// Terms is what kernel and daemon have agreed on.
type Terms struct {
	// Known tells that it was read from the kernel, or said by a user.
	// Otherwise only what the mount itself shows is here.
	Known bool `json:"known"`

	Major               uint32 `json:"major"`
	Minor               uint32 `json:"minor"`
	MaxReadahead        uint32 `json:"max_readahead"`
	Flags               uint64 `json:"flags"` // FUSE_ASYNC_READ …, flags2 in the upper half
	MaxBackground       uint16 `json:"max_background"`
	CongestionThreshold uint16 `json:"congestion_threshold"`
	MaxWrite            uint32 `json:"max_write"`
	TimeGran            uint32 `json:"time_gran"`
	MaxPages            uint16 `json:"max_pages"`
	MaxStackDepth       uint32 `json:"max_stack_depth,omitempty"`

	// Unsupported are the operations that the daemon has answered with
	// ENOSYS, one bit an opcode: the kernel does not ask for them again.
	Unsupported uint64 `json:"unsupported,omitempty"`
}

// MaxMessage bounds max_write and max_readahead: 64 KiB pages (fs/fuse
// allows max_pages of 16 bits).
const MaxMessage = 1 << 28

// Check returns an error if no kernel ever agreed on that.
func (t *Terms) Check() error {
	if t.MaxWrite > MaxMessage || t.MaxReadahead > MaxMessage || t.TimeGran > 1e9 || t.MaxStackDepth > 2 {
		return errors.New("what was negotiated is out of range")
	}
	if t.Known && t.Major != 7 {
		return fmt.Errorf("protocol version %d", t.Major)
	}
	return nil
}

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
// kernel's least is one page (fs/fuse/inode.c process_init_reply). From 7.16 on
// it sends many FORGETs in one request (fs/fuse/dev.c fuse_read_forget), which an
// older daemon does not know; nothing else that it sends by itself is newer.
const (
	plainMinor = 15

	// PlainMaxWrite is the largest write then.
	PlainMaxWrite = 4096
)

func plain() Terms {
	return Terms{Known: true, Major: 7, Minor: plainMinor, Flags: fuse.CAP_BIG_WRITES, MaxWrite: PlainMaxWrite, TimeGran: 1}
}

// Offer is what a kernel offers by INIT.
type Offer struct {
	Major, Minor, MaxReadahead uint32
	Flags                      uint64
}

// OfferOf reads an INIT (struct fuse_init_in).
func OfferOf(req fusedev.Request) Offer {
	o := Offer{Major: req.U32(0), Minor: req.U32(4), MaxReadahead: req.U32(8), Flags: uint64(req.U32(12))}
	if o.Flags&fuse.CAP_INIT_EXT != 0 {
		o.Flags |= uint64(req.U32(16)) << 32
	}
	return o
}

// Answer is the answer to a kernel that makes that offer, in the daemon's place.
// The error says what the daemon relies on that the kernel does not have;
// reduced are the flags that are left out without harm.
func (t *Terms) Answer(o Offer) (out *fuse.InitOut, reduced uint64, err error) {
	if o.Major != 7 {
		return nil, 0, fmt.Errorf("it speaks version %d.%d of the protocol", o.Major, o.Minor)
	}
	if !t.Known {
		p := plain()
		p.MaxReadahead = o.MaxReadahead
		return p.out(), 0, nil
	}
	if t.Flags&fuse.CAP_OVER_IO_URING != 0 {
		return nil, 0, errors.New("the daemon took requests through io_uring, which is not restored")
	}
	missing := t.Flags &^ o.Flags
	if unsafe := missing &^ mayMiss; unsafe != 0 {
		return nil, 0, fmt.Errorf("it does not offer what the daemon relies on: %s (--init can leave it out, at your risk)", FlagNames(unsafe))
	}
	return t.out(), missing &^ (fuse.CAP_INIT_EXT | fuse.CAP_INIT_RESERVED), nil
}

// out is struct fuse_init_out.
func (t *Terms) out() *fuse.InitOut {
	flags := t.Flags
	if flags>>32 != 0 {
		flags |= fuse.CAP_INIT_EXT
	}
	return &fuse.InitOut{
		Major: 7, Minor: t.Minor, MaxReadAhead: t.MaxReadahead,
		Flags: uint32(flags), Flags2: uint32(flags >> 32),
		MaxBackground: t.MaxBackground, CongestionThreshold: t.CongestionThreshold,
		MaxWrite: t.MaxWrite, TimeGran: t.TimeGran, MaxPages: t.MaxPages, MaxStackDepth: t.MaxStackDepth,
	}
}
