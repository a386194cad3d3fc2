package handover

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
	"spfs/internal/fuseinit"
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
	offer := fuseinit.OfferOf(req)
	s.offered = offer.Flags
	out, reduced, err := s.rec.Init.Answer(offer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	if s.offered&fuse.CAP_HAS_EXPIRE_ONLY == 0 {
		return nil, fmt.Errorf("%w: names can't be made to expire (FUSE_EXPIRE_ONLY, Linux 6.2)", ErrKernel)
	}
	s.reduced = reduced
	return out, nil
}
