package swap

import (
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
	"spfs/internal/thread"
)

// owner asks what a FUSE mount tells to its owner only. Without allow_other
// the kernel refuses all but processes whose every user and group id is the
// mounter's, root too (fs/fuse/dir.c fuse_permissible_uidgid).
type owner struct {
	uid, gid int
	start    sync.Once
	calls    chan func()
	quit     chan struct{}
	err      error // of becoming the owner
}

// newOwner reads who owns the file system out of a mount's options.
func newOwner(m *mounts.Mount) *owner {
	o := &owner{calls: make(chan func()), quit: make(chan struct{})}
	if uid, ok := m.SuperOption("user_id"); ok {
		o.uid, _ = strconv.Atoi(uid)
	}
	if gid, ok := m.SuperOption("group_id"); ok {
		o.gid, _ = strconv.Atoi(gid)
	}
	return o
}

// close ends the owner's thread, if there is one. A reader that was given up
// may still ask, and gets no answer.
func (o *owner) close() { close(o.quit) }

// attributes is procDir.attributes as the owner.
func (o *owner) attributes(dir procDir, link string) (st unix.Statx_t, err error) {
	o.start.Do(func() {
		ready := make(chan error)
		go thread.Run(func() error {
			ready <- assume(o.uid, o.gid)
			for {
				select {
				case call := <-o.calls:
					call()
				case <-o.quit:
					return nil
				}
			}
		})
		o.err = <-ready
	})
	if o.err != nil {
		return st, o.err
	}
	done := make(chan struct{})
	select {
	case o.calls <- func() {
		st, err = dir.attributes(link)
		close(done)
	}:
		<-done
	case <-o.quit:
		err = unix.EACCES
	}
	return st, err
}

// noSetuidFixup is SECBIT_NO_SETUID_FIXUP of include/uapi/linux/securebits.h:
// changing user ids drops no capabilities.
const noSetuidFixup = 1 << 2

// assume makes the calling thread, and it alone, another user's with the
// capabilities that it has. The system calls are made raw: the libraries'
// change every thread.
func assume(uid, gid int) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_SECUREBITS): %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
		return fmt.Errorf("setresgid(%d): %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("setresuid(%d): %w", uid, errno)
	}
	return nil
}
