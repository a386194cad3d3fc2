package devfuse

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Key is what CRIU calls the placeholder: "file[MNT:INO]".
func (d *Description) Key() string { return d.key }

// File is the copy that Take made. It is the description's.
func (d *Description) File() *os.File { return d.file }

// Placeholder is what MakePlaceholders made. It is the description's.
func (d *Description) Placeholder() *os.File { return d.placeholder }

// Adopt gives a description the copy and the placeholder that another process
// has taken and made. It owns them from now on.
func (d *Description) Adopt(file, placeholder *os.File) { d.file, d.placeholder = file, placeholder }

// Take copies the descriptions out of their processes.
func Take(all []*Description) error {
	for _, d := range all {
		h := d.Holders[0]
		pidfd, err := unix.PidfdOpen(h.PID, 0)
		if err != nil {
			return fmt.Errorf("opening a pidfd of process %d: %w", h.PID, err)
		}
		fd, err := unix.PidfdGetfd(pidfd, h.FD, 0)
		unix.Close(pidfd)
		if err != nil {
			return fmt.Errorf("taking descriptor %d of process %d: %w", h.FD, h.PID, err)
		}
		// Its Fd must never be called, which makes it block: that is the
		// daemon's affair.
		d.file = os.NewFile(uintptr(fd), "/dev/fuse")
	}
	return nil
}

// MakePlaceholders makes a placeholder for each description: a FIFO of its own,
// on a file system that is mounted nowhere, opened so that a read of it waits
// as a read of an idle /dev/fuse does.
func MakePlaceholders(all []*Description) error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("a file system for placeholders: fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", "spfs"); err != nil {
		return fmt.Errorf("a file system for placeholders: fsconfig: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("a file system for placeholders: fsconfig: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("a file system for placeholders: fsmount: %w", err)
	}
	defer unix.Close(dir) // the FIFOs keep it
	for i, d := range all {
		name := fmt.Sprintf("spfs-connection-%d-%d", d.Connection, i)
		if err := unix.Mkfifoat(dir, name, 0o600); err != nil {
			return fmt.Errorf("making a placeholder: %w", err)
		}
		// With O_RDWR neither open nor read finds that nobody writes
		// (fs/pipe.c, fifo_open).
		flags := unix.O_RDWR | unix.O_CLOEXEC | d.Flags&(unix.O_NONBLOCK|unix.O_LARGEFILE)
		fd, err := unix.Openat(dir, name, flags, 0)
		if err != nil {
			return fmt.Errorf("opening a placeholder: %w", err)
		}
		d.placeholder = os.NewFile(uintptr(fd), name)
		var st unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
			return fmt.Errorf("statx of a placeholder: %w", err)
		}
		if st.Mask&unix.STATX_MNT_ID == 0 {
			return fmt.Errorf("statx tells no mount id: Linux 5.8 or newer is needed")
		}
		d.key = Key(int(st.Mnt_id), st.Ino)
	}
	return nil
}

// Key is what CRIU calls an open file in --external and in its images
// (criu/files-reg.c, dump_one_reg_file).
func Key(mount int, ino uint64) string { return fmt.Sprintf("file[%x:%x]", mount, ino) }

// Close gives back what a description owns.
func (d *Description) Close() {
	for _, f := range []**os.File{&d.file, &d.placeholder} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
}

// TakePlaceholder takes over the placeholder that was made for the same
// description as it was found before, with the same flags.
func (d *Description) TakePlaceholder(before *Description) {
	d.placeholder, d.key = before.placeholder, before.key
	before.placeholder = nil
}
