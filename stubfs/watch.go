package stubfs

import (
	"time"

	"spfs/internal/fusedev"
)

// The kernel sends one INTERRUPT for a request, at the first signal, however
// harmless, and none when the process is killed later (fs/fuse/dev.c
// request_wait_answer); nor is there a file to poll that tells of a pending
// SIGKILL. So those requests, and no others, are looked at again and again:
// this often, or less if looking takes long.
const watchInterval = 50 * time.Millisecond

// watchShare bounds the share of one processor that watching takes: 1/n.
const watchShare = 20

// watch looks at interrupted requests until there are none left. It runs at
// most once at a time: startWatch sees to that.
func (f *FS) watch() {
	pause := watchInterval
	for {
		select {
		case <-f.done:
			return
		case <-time.After(pause):
		}
		began := time.Now()
		left := 0
		for _, h := range f.gate.watched() {
			if !f.letDie(h) {
				left++
			}
		}
		f.watchMu.Lock()
		if left == 0 && len(f.gate.watched()) == 0 {
			f.watching = false
			f.watchMu.Unlock()
			return
		}
		f.watchMu.Unlock()
		pause = max(watchInterval, watchShare*time.Since(began))
	}
}

func (f *FS) startWatch() {
	f.watchMu.Lock()
	defer f.watchMu.Unlock()
	if !f.watching {
		f.watching = true
		go f.watch()
	}
}

// letDie answers a request that waits if its process is dying. It returns
// false if it lives.
func (f *FS) letDie(h *held) bool {
	switch f.fate(h.req.TID()) {
	case lives:
		return false
	case kernel:
		// A kernel thread that closes a file for a process must not
		// stand still: others wait for it (fs/file_table.c
		// delayed_fput). Nothing else of it is answered.
		if !givesBack(h.req) {
			return false
		}
	}
	if errno, ok := f.gate.drop(h); ok {
		f.report(f.conn.Answer(h.req.Unique(), errno))
	}
	return true
}

// interrupt handles an INTERRUPT.
func (f *FS) interrupt(req fusedev.Request) {
	h, known := f.gate.interrupt(req.Interrupted())
	switch {
	case !known:
		// Another reader may have the request in hands, not yet in the
		// gate. EAGAIN makes the kernel say it again, if it still waits
		// for that request (fs/fuse/dev.c fuse_dev_do_write).
		f.report(f.conn.Answer(req.Unique(), errAgain))
	case h != nil && !f.letDie(h):
		f.startWatch()
	}
	// One that runs is not given up: on a directory, nothing but a wait for
	// a lock ends with EINTR, and that the gate has seen to.
}
