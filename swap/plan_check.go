package swap

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/internal/eintr"
)

// check compares the old file with its replacement, where that has not been
// done for the old file as it is now.
func (o *opener) check(j *opening) {
	if j.got == nil {
		return
	}
	written := o.written[j.want.ino]
	switch {
	case !j.compares || j.got.size == int64(j.attr.Size):
	case o.final || !written:
		o.compareSize(j)
	default:
		o.noteSize(j)
	}
	if j.compares && o.final && written && len(j.obstacles) == 0 {
		o.dropStale(j)
	}
	if j.readsDir && (!j.got.posSet || j.got.pos != j.pos) {
		o.placeInDirectory(j)
	}
}

// noteSize compares the size of a file that is being written to, and so may
// differ at any moment until all is stopped. If it does not now, there is
// nothing left to ask then, unless it grows.
func (o *opener) noteSize(j *opening) {
	if st, err := statNew(j.got.file); err == nil && st.Size == j.attr.Size && !j.attr.ambiguous {
		j.got.size = int64(j.attr.Size)
	}
}

// dropStale makes the kernel forget what it has cached of a new file that was
// written to through the old mount after the replacement was opened, by whom
// ever it was read. A file's cache is one for all who have it open.
func (o *opener) dropStale(j *opening) {
	fd := int(j.got.file.Fd())
	// There mostly are none, and each call counts: processes are stopped.
	if cachedPages(fd) == 0 || unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) == nil && cachedPages(fd) == 0 {
		return
	}
	// Pages that somebody has mapped stay. Unless the daemon says
	// FOPEN_KEEP_CACHE, opening the file drops those too (fs/fuse/file.c
	// fuse_finish_open).
	if f, err := o.openAt(j, j.want.path); err == nil {
		j.got.file.Close()
		j.got.file = f
	}
}

// cachedPages says how many pages of a file are cached, or 1 if the kernel
// does not tell (before Linux 6.5).
func cachedPages(fd int) uint64 {
	var whole unix.CachestatRange // of no length: to the end
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &whole, &st, 0); err != nil {
		return 1
	}
	return st.Cache
}

// compareSize refuses a file whose size is another. Of the old one counts what
// the kernel believes, since it asks nobody; only where that differs, and the
// old file system answers, it is asked.
func (o *opener) compareSize(j *opening) {
	st, err := statNew(j.got.file)
	if err != nil {
		j.refuse(fmt.Sprintf("its size on --to can't be told: %v", err), "make it readable")
		return
	}
	size := j.attr.Size
	if st.Size != size && o.plan.asks() {
		if asked, err := o.askSize(j); err == nil {
			size = asked
		}
	}
	if st.Size != size {
		// A daemon may keep attributes itself and for long (sshfs does, 20 s):
		// opening the file makes it look again.
		if f, err := o.openAt(j, j.want.path); err == nil {
			if again, err := statNew(f); err == nil {
				st = again
				j.got.file.Close()
				j.got.file = f
			} else {
				f.Close()
			}
		}
	}
	if st.Size != size {
		j.refuse(fmt.Sprintf("is %d bytes here, %d on --to", size, st.Size), "make them the same, or close it")
		j.obstacles[len(j.obstacles)-1].Loss = o.losesEnd(j, size, st.Size)
		return
	}
	if j.attr.ambiguous && (st.Uid != j.attr.Uid || st.Gid != j.attr.Gid || st.Mode != j.attr.Mode || st.Mtime != j.attr.Mtime) {
		// Its name may end so, or the kernel may say so of a deleted file
		// with another hard link: nobody must get a stranger's file by that.
		j.refuse("it may be deleted or may be called so, and the file of that name on --to has another owner, mode or time", "close it")
		return
	}
	j.got.size = int64(j.attr.Size)
}

// statNew asks the new file system.
func statNew(f *os.File) (st unix.Statx_t, err error) {
	err = eintr.Retry(func() error {
		return unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	})
	return st, err
}

// askSize asks the old file system. Before everyone is stopped the number may
// be another file's by now: then so is all that was found, and Refresh finds
// it again. (Nothing tells the two apart for certain: even i_ino follows what
// the daemon says, fs/fuse/inode.c fuse_change_attributes_common, and changes
// when a stub is opened onto another directory.)
func (o *opener) askSize(j *opening) (uint64, error) {
	if j.ref.TID == 0 {
		return 0, unix.EBADF
	}
	link := fmt.Sprintf("/proc/%d/task/%d/fd/%d", j.ref.PID, j.ref.TID, j.ref.FD)
	fd, err := eintr.Get(func() (int, error) { return unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return 0, err
	}
	old := os.NewFile(uintptr(fd), link)
	defer old.Close()
	st, err := statNew(old)
	return st.Size, err
}
