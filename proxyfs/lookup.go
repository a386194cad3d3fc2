package proxyfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, base string, out *fuse.EntryOut) fuse.Status {
	dir, dirFD, err := f.use(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.done(dir)
	return status(f.lookup(dir, dirFD, base, out))
}

// lookup finds base in dir, counts that in the node's lookups and describes it
// in out.
func (f *FS) lookup(dir *node, dirFD int, base string, out *fuse.EntryOut) error {
	if base == "." || base == ".." {
		return unix.ENOENT // for NFS exports only (fs/fuse/inode.c, fuse_get_parent), which are not offered
	}
	f.rediscover(dir, base)
	var st unix.Stat_t
	if err := fstatat(dirFD, base, &st); err != nil {
		if err == unix.ENOENT {
			f.mu.Lock()
			f.dropNameLocked(dir, base, false)
			f.mu.Unlock()
		}
		return err
	}
	f.mu.Lock()
	if n := f.byFile[fileIDOf(&st)]; n != nil && n.fd >= 0 {
		f.enterLocked(n, dir, base)
		f.mu.Unlock()
		f.fillEntry(out, n, &st)
		return nil
	}
	f.mu.Unlock()

	fd, err := f.openPath(dirFD, base, &st)
	if err != nil {
		return err
	}
	n := f.adopt(fd, &st, dir, base)
	f.fillEntry(out, n, &st)
	return nil
}

// rediscover makes the node that base in dir was when last seen, in a former
// directory perhaps, open its file again, so that its id stays the same.
// Should it fail, a new node it is.
func (f *FS) rediscover(dir *node, base string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := dir.children[base]; n != nil && n.fd < 0 && !n.gone {
		if _, err := f.useLocked(n); err == nil {
			f.unpinLocked(n)
		}
	}
}

// adopt makes fd (O_PATH), whose file st describes, the descriptor of that
// file's node, or closes it if the node has one; it counts the lookup and
// returns the node. A nil dir means that the file has no name.
func (f *FS) adopt(fd int, st *unix.Stat_t, dir *node, base string) *node {
	file := fileIDOf(st)
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.byFile[file]
	if n != nil && n.fd < 0 {
		if n.proof.matches(fd) {
			f.bindLocked(n, fd, file, f.epoch)
			fd = -1
		} else { // its number was given to another file
			n.gone = true
			f.forgetFileLocked(n)
			n = nil
		}
	}
	if n == nil {
		f.lastNode++
		n = &node{id: f.lastNode, fd: -1, typ: st.Mode & unix.S_IFMT, users: 1}
		f.nodes[n.id] = n
		f.bindLocked(n, fd, file, f.epoch)
		n.users--
	} else if fd >= 0 {
		unix.Close(fd)
	}
	if dir == nil {
		n.lookups++
		n.unlinked = true
	} else {
		f.enterLocked(n, dir, base)
	}
	return n
}

func (f *FS) enterLocked(n, dir *node, base string) {
	n.used = true
	n.lookups++
	f.setNameLocked(dir, base, n)
}

// Forget takes lookups back.
func (f *FS) Forget(nodeid, nlookup uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[nodeid]
	if n == nil || n == f.root {
		return
	}
	n.lookups -= min(nlookup, n.lookups)
	f.freeLocked(n)
}

func (f *FS) fillEntry(out *fuse.EntryOut, n *node, st *unix.Stat_t) {
	out.NodeId = n.id
	out.Generation = 1 // ids are not given twice
	out.SetEntryTimeout(f.opts.EntryTimeout)
	out.SetAttrTimeout(f.opts.AttrTimeout)
	fillAttr(&out.Attr, st)
}

func fillAttr(out *fuse.Attr, st *unix.Stat_t) {
	*out = fuse.Attr{
		Ino:       st.Ino,
		Size:      uint64(st.Size),
		Blocks:    uint64(st.Blocks),
		Atime:     uint64(st.Atim.Sec),
		Mtime:     uint64(st.Mtim.Sec),
		Ctime:     uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec),
		Mtimensec: uint32(st.Mtim.Nsec),
		Ctimensec: uint32(st.Ctim.Nsec),
		Mode:      st.Mode,
		Nlink:     uint32(st.Nlink),
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:      encodeDev(st.Rdev),
		Blksize:   uint32(st.Blksize),
	}
}

// encodeDev is the kernel's new_encode_dev (include/linux/kdev_t.h), which
// FUSE uses; st_rdev has more bits.
func encodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}
