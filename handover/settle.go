package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
)

// settleLookups lets the kernel look every node up as often as the daemon gave
// it. It will have the daemon forget it as often, and libfuse aborts if that
// is more than it knows of. The nodes are pinned, so what was counted stays.
func (a *Adopted) settleLookups(ctx context.Context) error {
	s := a.stand
	s.mu.Lock()
	s.settling = true
	s.mu.Unlock()
	at := map[uint64]*os.File{RootID: a.mount.File()}
	inside := make(map[uint64]uint64) // lookups that are missing, by directory
	for _, p := range a.pins {
		at[p.node] = p.file
		given, owed, err := s.balance(p)
		if err != nil {
			return err
		}
		inside[p.name.Parent] += owed - given
	}
	for dir, missing := range inside {
		if missing > manyLookups {
			if err := s.lookUpByListing(ctx, at[dir]); err != nil {
				return fmt.Errorf("node %d: %w", dir, err)
			}
		}
	}
	for _, p := range a.pins {
		for first := true; ; first = false {
			given, owed, err := s.balance(p)
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return fmt.Errorf("node %d was looked up %d times of %d: %w", p.node, given, owed, context.Cause(ctx))
			}
			if given == owed {
				break
			}
			if first {
				if err := s.conn.ExpireEntry(p.name.Parent, string(p.name.Name)); err != nil {
					return err
				}
			}
			if err := lookUp(at[p.name.Parent], string(p.name.Name)); err != nil {
				return fmt.Errorf("node %d: %w", p.node, err)
			}
		}
	}
	return nil
}

// balance is how often a node was looked up, and how often it must be.
func (s *standIn) balance(p pin) (given, owed uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.nodes[p.node]
	given, owed = k.given, k.owed()
	switch {
	case s.err != nil:
		err = s.err
	case given > owed:
		err = fmt.Errorf("node %d (%q) was looked up %d times, and its daemon knows of %d", p.node, p.name.Name, given, owed)
	}
	return given, owed, err
}

// manyLookups is how many single lookups cost less than opening a directory.
const manyLookups = 8

// lookUpByListing has the nodes in a directory looked up many at a time: each
// entry of READDIRPLUS counts as a lookup, also if the same comes a hundred
// times (fs/fuse/readdir.c fuse_direntplus_link). A daemon that lets names
// expire at once was asked a million times. If READDIRPLUS was not negotiated
// nothing happens.
func (s *standIn) lookUpByListing(ctx context.Context, dir *os.File) error {
	if i := s.rec.Init; !i.Known || i.Flags&fuse.CAP_READDIRPLUS == 0 {
		return nil
	}
	runtime.LockOSThread() // the open is known by its thread
	tid := unix.Gettid()
	s.mu.Lock()
	s.expect[tid] = forListing
	s.mu.Unlock()
	f, err := openAgain(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	s.mu.Lock()
	delete(s.expect, tid)
	s.mu.Unlock()
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		// At position 0 the kernel asks for READDIRPLUS, whatever it would
		// find better (fuse_use_readdirplus).
		if _, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_SET); err != nil {
			return fmt.Errorf("listing it: %w", err)
		}
		n, err := unix.Getdents(int(f.Fd()), buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("listing it: %w", err)
		case n == 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := s.failure(); err != nil {
			return err
		}
	}
}

// forListing is in standIn.expect what is no handle: the open is our own.
const forListing = -1

// listLookups answers the READDIRPLUS of lookUpByListing: every name in the
// directory, as often as its node must still be looked up and as room is.
func (s *standIn) listLookups(req fusedev.Request, dir *known) func() {
	offset, size := req.Range()
	list := fuse.NewDirEntryList(make([]byte, min(size, fusedev.MaxWrite)), offset)
	for name, k := range dir.byEntry {
		if home := s.homes[k.ID]; home.Parent != dir.ID || string(home.Name) != name {
			continue // it is looked up where it is pinned
		}
		for k.given < k.owed() {
			out := list.AddDirLookupEntry(fuse.DirEntry{Name: name, Ino: k.Attr.Ino, Mode: k.Attr.Mode})
			if out == nil {
				return s.data(req, list.Bytes())
			}
			*out = s.entryOut(k)
			k.given++
		}
	}
	return s.data(req, list.Bytes())
}
