package swap

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/thread"
)

// include/uapi/asm-generic/fcntl.h.
const (
	fGetSig       = 11
	fSetSig       = 10
	fGetOwnerUIDs = 17
)

// signalOwner is whom a description's signals go to: the fown_struct of
// include/linux/fs.h.
type signalOwner struct {
	kind      int32 // F_OWNER_…
	pid       int32 // in our namespace; 0 if there is none, or no more
	uid, euid uint32
	signal    int
}

// readOwner asks for the owner of an open file. It asks no file system.
func readOwner(fd int) (o signalOwner, err error) {
	var owner struct{ kind, pid int32 } // struct f_owner_ex
	if _, err := fcntlAt(fd, unix.F_GETOWN_EX, unsafe.Pointer(&owner)); err != nil {
		return o, fmt.Errorf("F_GETOWN_EX: %w", err)
	}
	o.kind, o.pid = owner.kind, owner.pid
	if o.signal, err = unix.FcntlInt(uintptr(fd), fGetSig, 0); err != nil {
		return o, fmt.Errorf("F_GETSIG: %w", err)
	}
	if o.pid == 0 {
		return o, nil
	}
	// With CONFIG_CHECKPOINT_RESTORE only.
	var ids [2]uint32
	if _, err := fcntlAt(fd, fGetOwnerUIDs, unsafe.Pointer(&ids)); err != nil {
		return o, fmt.Errorf("F_GETOWNER_UIDS: %w", err)
	}
	o.uid, o.euid = ids[0], ids[1]
	return o, nil
}

func fcntlAt(fd, command int, arg unsafe.Pointer) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(command), uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// set makes o the owner of an open file, and takes a lease on it if lease is
// not nil. The kernel remembers the user ids of who sets an owner, and asks
// them whether the signal may be sent (fs/fcntl.c sigio_perm): so a thread with
// those very ids does it. Had it ours, the process could have signals sent to
// anyone.
func (o *signalOwner) set(fd int, lease *lock) error {
	return thread.Run(func() error {
		if o.pid != 0 {
			if err := assumeUser(o.uid, o.euid); err != nil {
				return err
			}
			if err := o.setOwner(fd); err != nil {
				return err
			}
		}
		if _, err := unix.FcntlInt(uintptr(fd), fSetSig, o.signal); err != nil {
			return fmt.Errorf("F_SETSIG %d: %w", o.signal, err)
		}
		if lease == nil {
			return nil
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, int(lease.fcntlType())); err != nil {
			return fmt.Errorf("the lease: %w", err)
		}
		if o.pid == 0 {
			// Taking a lease has made us the owner.
			return o.setOwner(fd)
		}
		return nil
	})
}

func (o *signalOwner) setOwner(fd int) error {
	owner := struct{ kind, pid int32 }{o.kind, o.pid}
	if _, err := fcntlAt(fd, unix.F_SETOWN_EX, unsafe.Pointer(&owner)); err != nil {
		return fmt.Errorf("F_SETOWN_EX of process %d: %w", o.pid, err)
	}
	return nil
}
