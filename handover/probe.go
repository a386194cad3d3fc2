package handover

import (
	"fmt"

	"golang.org/x/sys/unix"

	"spfs/internal/devfuse"
	"spfs/internal/fusedev"
	"spfs/internal/fusestate"
)

// probeCommand is an ioctl that no file system knows: _IO(0x7f, 0x7f).
const probeCommand = 0x7f7f

// probe finds the handles of open files where the kernel's memory can't be
// read: an ioctl on a copy of a descriptor becomes a request with node and
// handle in it (fs/fuse/ioctl.c, fuse_do_ioctl), and the daemon, which is
// stopped, never sees it.
func (s *stopper) probe() error {
	for _, d := range firstOfEach(s.census.devices) {
		if err := s.probeConnection(d); err != nil {
			return fmt.Errorf("asking for the file handles of connection %d: %w", d.Connection, err)
		}
	}
	return nil
}

// firstOfEach picks one description of each connection.
func firstOfEach(all []*devfuse.Description) (first []*devfuse.Description) {
	seen := make(map[uint64]bool)
	for _, d := range all {
		if !seen[d.Connection] {
			seen[d.Connection] = true
			first = append(first, d)
		}
	}
	return first
}

func (s *stopper) probeConnection(d *devfuse.Description) (err error) {
	conn, err := fusedev.Clone(d.File())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop, err := fusedev.NewStop()
	if err != nil {
		return err
	}
	defer stop.Close()
	type answer struct{ node, fh uint64 }
	var got []answer
	kept, ended := 0, make(chan error, 1)
	go func() {
		_, err := conn.ServeUntil(stop, unknownMaxWrite, func(req fusedev.Request) {
			errno := unix.Errno(0)
			switch req.Opcode() {
			case fusedev.OpIoctl:
				got = append(got, answer{req.NodeID(), req.U64(0)})
				errno = unix.ENOTTY
			case fusedev.OpFlush: // of a copy that was closed
			case fusedev.OpForget, fusedev.OpBatchForget, fusedev.OpInterrupt:
				return
			default:
				kept++ // for the daemon
				return
			}
			// Who can't be answered is gone.
			_ = conn.Answer(req.Unique(), errno)
		})
		ended <- err
	}()
	// In order of the requests, since each ioctl waits for its answer.
	var probed []*user
	for i := range s.census.users {
		u := &s.census.users[i]
		if u.conn != d.Connection || u.open == nil || u.mapped || u.open.Flags&unix.O_PATH != 0 || sameAsOne(probed, u) {
			continue
		}
		asked, perr := probeFile(u)
		if perr != nil {
			err = perr
			break
		}
		if asked {
			probed = append(probed, u)
		}
	}
	stop.Tell()
	if serr := <-ended; err == nil {
		err = serr
	}
	if kept > 0 {
		if rerr := conn.Resend(); err == nil {
			err = rerr
		}
	}
	if err == nil && len(got) != len(probed) {
		err = fmt.Errorf("of %d files, %d have a handle", len(probed), len(got))
	}
	if err != nil {
		return err
	}
	for i, u := range probed {
		u.node = &fusestate.Node{Dev: u.node.Dev, Ino: u.node.Ino, ID: got[i].node}
		open := *u.open
		open.HasFH, open.FH = true, got[i].fh
		u.open = &open
	}
	return nil
}

// probeFile asks for one file's handle, and says whether it has one: FIFOs and
// the like don't.
func probeFile(u *user) (bool, error) {
	pidfd, err := unix.PidfdOpen(u.pid, 0)
	if err != nil {
		return false, fmt.Errorf("opening a pidfd of %s: %w", describe(u.pid), err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, u.fd, 0)
	if err != nil {
		return false, fmt.Errorf("%s, %s: %w", describe(u.pid), u.what, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return false, fmt.Errorf("%s, %s: statx: %w", describe(u.pid), u.what, err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return false, nil
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), probeCommand, 0)
	if errno != unix.ENOTTY {
		return false, fmt.Errorf("%s, %s: the ioctl says %w", describe(u.pid), u.what, errno)
	}
	return true, nil
}

// sameAsOne says whether a descriptor leads to a description that was probed.
func sameAsOne(probed []*user, u *user) bool {
	for _, p := range probed {
		if p.node.Ino != u.node.Ino {
			continue
		}
		const kcmpFile = 0 // KCMP_FILE
		differ, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p.pid), uintptr(u.pid), kcmpFile, uintptr(p.fd), uintptr(u.fd), 0)
		if errno == 0 && differ == 0 {
			return true
		}
	}
	return false
}
