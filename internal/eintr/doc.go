// Package eintr makes system calls again that a signal has interrupted.
//
// The Go runtime preempts its threads by signals. With one pending, poll(2)
// returns EINTR even when it need not wait (fs/select.c, do_poll), and the
// kernel tells the daemon of a FUSE file system (FUSE_INTERRUPT), which may
// answer EINTR to anything.
//
// It owns nothing. It never retries what must not be done twice: close(2), and
// calls whose time-out would begin anew.
package eintr
