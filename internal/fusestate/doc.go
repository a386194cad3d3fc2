// Package fusestate tells what the kernel knows of FUSE, asking no daemon:
// who has which file of a FUSE file system open, mapped or as a directory,
// under which nodeid and file handle; who holds which connection's /dev/fuse;
// and what each connection negotiated.
//
// A [Reader] runs BPF iterators over all tasks of the machine, whatever
// namespaces they are in. Loading one takes a while ([Preload] does so
// beforehand), running it about a millisecond. It never sends a FUSE request,
// stops nobody and, since Linux 6.7, waits for no lock that a task may hold
// while it waits for a daemon. Where BPF can't be used, [Load] fails with
// [ErrNoBPF], and [FromProc] finds what /proc shows: that has no nodeids, no
// file handles and no connection parameters.
//
// A Reader owns its programs and maps until Close; its methods may be called
// from any goroutine and run one at a time. A [State] is plain data.
//
// What is read is what was there at that moment, object by object: tasks run
// on meanwhile. Of stopped tasks it is exact.
//
// It never changes anything in the kernel but its own maps, and never follows
// a kernel address that did not come out of the same run. The addresses in a
// State are for telling objects apart, not for showing.
//
// Mappings of files that the daemon lets the kernel read directly
// (FUSE_PASSTHROUGH) count for the file system beneath, as they do for the
// kernel (fs/backing-file.c backing_file_mmap).
package fusestate
