package proxyfs

import (
	"bytes"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// findLocked opens n.fd, or some directory on the way to it; the caller calls
// again until n.fd is there. It releases f.mu while it asks the file system.
//
// A node of this directory whose descriptor was closed is opened by its
// handle, or else by name, if that is provably the same file. A node of a
// former directory is opened by name, if that is a file of the same type. If
// there is none, n is gone and the answer ESTALE; any other error means
// nothing for the next time.
func (f *FS) findLocked(n *node) error {
	for depth := 0; ; depth++ {
		if n.epoch == f.epoch && n.proof != nil && n.proof.handle != nil && n.file.dev == f.root.file.dev {
			return f.openHandleLocked(n)
		}
		last := len(n.names) - 1 - n.tries
		if last < 0 || depth == maxDepth {
			n.gone = true
			return unix.ESTALE
		}
		nm := n.names[last]
		switch {
		case nm.parent.fd >= 0:
			return f.openNameLocked(n, nm)
		case nm.parent.gone:
			n.tries++
		default:
			n = nm.parent
		}
	}
}

// openHandleLocked opens n again by its handle.
func (f *FS) openHandleLocked(n *node) error {
	n.users++
	handle, root, epoch := *n.proof.handle, f.rootRead, f.epoch
	f.mu.Unlock()
	fd, err := f.withDescriptor(func() (fd int, err error) {
		err = eintr.Retry(func() error {
			fd, err = unix.OpenByHandleAt(root, handle, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
			return err
		})
		return fd, err
	})
	f.mu.Lock()
	defer f.unpinLocked(n)
	switch err {
	case nil:
		f.bindLocked(n, fd, n.file, epoch)
	case unix.ESTALE:
		n.gone = true
	}
	return err
}

// openNameLocked opens n again as nm.
func (f *FS) openNameLocked(n *node, nm name) error {
	n.users++
	nm.parent.users++
	dir, epoch, proof, file := nm.parent.fd, f.epoch, n.proof, n.file
	former := n.epoch != f.epoch
	f.mu.Unlock()

	var st unix.Stat_t
	fd, err := f.openPath(dir, nm.base, &st)
	same := err == nil && st.Mode&unix.S_IFMT == n.typ
	if same && !former {
		same = fileIDOf(&st) == file && proof.matches(fd)
	}

	f.mu.Lock()
	defer func() {
		f.unpinLocked(n)
		f.unpinLocked(nm.parent)
	}()
	switch {
	case same:
		f.bindLocked(n, fd, fileIDOf(&st), epoch)
		return nil
	case err == nil:
		unix.Close(fd)
	case err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ESTALE && err != unix.ELOOP:
		return err
	}
	n.tries++
	return nil
}

// openPath opens base in dir for no access (O_PATH) and describes it in st.
func (f *FS) openPath(dir int, base string, st *unix.Stat_t) (int, error) {
	fd, err := f.withDescriptor(func() (int, error) {
		return openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return -1, err
	}
	if err := fstat(fd, st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bindLocked gives n its descriptor, unless somebody was faster.
func (f *FS) bindLocked(n *node, fd int, file fileID, epoch uint64) {
	if n.fd >= 0 || n.gone || epoch != f.epoch {
		unix.Close(fd)
		return
	}
	n.fd, n.file, n.epoch, n.proof, n.tries, n.used = fd, file, epoch, nil, 0, true
	if f.byFile[file] == nil {
		f.byFile[file] = n
	}
	f.open++
	f.trimLocked(f.limit)
}

// withDescriptor calls open, which opens something; if there are no
// descriptors left, once more after half of those that can be spared are
// closed.
func (f *FS) withDescriptor(open func() (int, error)) (int, error) {
	fd, err := open()
	if outOfDescriptors(err) {
		f.mu.Lock()
		f.trimLocked(f.open / 2)
		f.mu.Unlock()
		fd, err = open()
	}
	return fd, err
}

// trimLocked closes descriptors of nodes if they are more than limit, so that
// three quarters of it remain: first of those not used since it last did.
// A node that has open files keeps its own, and so does one without a name,
// which could not be found again.
func (f *FS) trimLocked(limit int) {
	if f.open <= limit {
		return
	}
	for pass := 0; pass < 2; pass++ {
		for _, n := range f.nodes { // in no particular order
			if f.open <= limit*3/4 {
				return
			}
			if n.fd < 0 || n.users > 0 || n.handles > 0 || n == f.root || n.unlinked || len(n.names) == 0 {
				continue
			}
			if n.used && pass == 0 {
				n.used = false
				continue
			}
			n.proof = proofOf(n.fd)
			unix.Close(n.fd)
			n.fd, n.tries = -1, 0
			f.open--
		}
	}
}

// proof is what tells a file from a later one with the same inode number.
type proof struct {
	handle *unix.FileHandle // that open_by_handle_at takes
	fid    *unix.FileHandle // or one that can only be compared
	born   *unix.StatxTimestamp
}

// atHandleFID is AT_HANDLE_FID, of Linux 6.5: a handle to compare, from file
// systems too that can't open one (FUSE).
const atHandleFID = 0x200

// proofOf asks for what fd's file has to show. None of it makes a request to
// a remote file system.
func proofOf(fd int) *proof {
	p := &proof{}
	if h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH); err == nil {
		p.handle = &h
	} else if h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH|atHandleFID); err == nil {
		p.fid = &h
	}
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BTIME, &stx)
	if err == nil && stx.Mask&unix.STATX_BTIME != 0 {
		p.born = &stx.Btime
	}
	return p
}

// matches tells whether fd is open on the file that p is of, which is known to
// have the same st_dev and st_ino.
func (p *proof) matches(fd int) bool {
	if p == nil {
		return false
	}
	q := proofOf(fd)
	return sameHandle(p.handle, q.handle) && sameHandle(p.fid, q.fid) &&
		(p.born == nil) == (q.born == nil) && (p.born == nil || *p.born == *q.born)
}

func sameHandle(a, b *unix.FileHandle) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Type() == b.Type() && bytes.Equal(a.Bytes(), b.Bytes())
}
