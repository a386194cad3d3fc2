package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/internal/bytetext"
	"spfs/internal/devfuse"
	"spfs/internal/eintr"
	"spfs/internal/fuseinit"
	"spfs/internal/fusestate"
	"spfs/internal/mounts"
)

// looker takes records, while the daemons run and the clients don't. What it
// has looked at it holds open (O_PATH, which asks the daemon nothing), so that
// the kernel forgets none of it until close.
type looker struct {
	namespaces map[uint64]*namespace // by inode
	file       map[string]int        // of a File, by key
	files      []File
	systems    map[uint64]*fileSystem // by connection
	spares     map[int]bool           // descriptors of openSpares
}

// namespace is a mount namespace of the tree.
type namespace struct {
	*mounts.Namespace
	table mounts.Table
}

// fileSystem is one connection's.
type fileSystem struct {
	conn   uint64
	root   int // its root directory, O_PATH; -1 until found
	mount  *mounts.Mount
	nodes  map[uint64]*Node
	pins   map[uint64]int // by node
	byPath map[string]uint64
	record *Record
}

func newLooker() *looker {
	return &looker{namespaces: make(map[uint64]*namespace), file: make(map[string]int), systems: make(map[uint64]*fileSystem),
		spares: make(map[int]bool)}
}

// close lets go of everything that is held.
func (l *looker) close() {
	for _, ns := range l.namespaces {
		ns.Close()
	}
	for _, s := range l.systems {
		for _, fd := range s.pins {
			unix.Close(fd)
		}
		if s.root >= 0 {
			unix.Close(s.root)
		}
	}
	for fd := range l.spares {
		unix.Close(fd)
	}
	l.namespaces, l.systems, l.spares = nil, nil, nil
}

// look begins the records of all connections of a census, and records what
// everyone uses. What was written is with the daemons before.
//
// Of a tree that is not to run on, its daemons have then forgotten what nobody
// uses.
func (l *looker) look(c *census, leaveRunning bool) error {
	for conn := range c.served {
		if err := l.begin(c, conn); err != nil {
			return err
		}
	}
	for _, s := range l.systems {
		if err := s.flush(); err != nil {
			return err
		}
	}
	for i := range c.users {
		if err := l.lookAt(&c.users[i]); err != nil {
			u := &c.users[i]
			return fmt.Errorf("%s, %s: %w", describe(u.pid), u.what, err)
		}
	}
	if err := l.openSpares(c); err != nil || leaveRunning {
		return err
	}
	for _, s := range l.systems {
		if err := s.shrink(); err != nil {
			return err
		}
	}
	return nil
}

// namespaceOf returns the mount namespace of a process.
func (l *looker) namespaceOf(pid int) (*namespace, error) {
	name := fmt.Sprintf("/proc/%d/ns/mnt", pid)
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("the mount namespace of %s: %w", describe(pid), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("the mount namespace of %s: %w", describe(pid), err)
	}
	if known := l.namespaces[st.Ino]; known != nil {
		f.Close()
		return known, nil
	}
	ns := &namespace{Namespace: &mounts.Namespace{Inode: st.Ino, File: f, PIDs: []int{pid}}}
	l.namespaces[st.Ino] = ns
	ns.table, err = ns.Mounts()
	return ns, err
}

// begin finds a connection's file system by its mounts, and looks at its root.
func (l *looker) begin(c *census, conn uint64) error {
	s := &fileSystem{conn: conn, root: -1, nodes: make(map[uint64]*Node), pins: make(map[uint64]int), byPath: make(map[string]uint64)}
	l.systems[conn] = s
	for _, pid := range c.pids {
		ns, err := l.namespaceOf(pid)
		if err != nil {
			if zombie(pid) {
				continue
			}
			return err
		}
		for _, m := range ns.table {
			if m.Dev != unix.Mkdev(0, uint32(conn)) || m.Root != "/" {
				continue
			}
			clone, err := ns.clone(m)
			if err != nil {
				return err
			}
			s.root, s.mount = clone, m
			break
		}
		if s.root >= 0 {
			break
		}
	}
	if s.root < 0 {
		return fmt.Errorf("connection %d, which %s serves: no mount in the tree shows its root directory", conn, describe(c.served[conn][0]))
	}
	n, err := s.examine(s.root)
	if err != nil {
		return fmt.Errorf("the root of %s: %w", s.mount.Point, err)
	}
	if n.ID != RootID {
		return fmt.Errorf("the root of %s is node %d", s.mount.Point, n.ID)
	}
	s.byPath["/"] = RootID
	if s.pins[RootID], err = unix.FcntlInt(uintptr(s.root), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	s.record = &Record{ID: conn, Options: optionsOf(s.mount, n)}
	var st unix.Statfs_t
	if err := eintr.Retry(func() error { return unix.Fstatfs(s.root, &st) }); err != nil {
		return fmt.Errorf("statfs of %s: %w", s.mount.Point, err)
	}
	s.record.Statfs = Statfs{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize)}
	return nil
}

// flush writes the dirty pages of shared mappings, and of a writeback cache:
// later, nobody could take them (fs/fuse/file.c, fuse_writepages).
func (s *fileSystem) flush() error {
	fd, err := eintr.Get(func() (int, error) { return unix.Openat(s.root, ".", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return fmt.Errorf("flushing %s: opening it: %w", s.mount.Point, err)
	}
	defer unix.Close(fd)
	if err := eintr.Retry(func() error { return unix.Syncfs(fd) }); err != nil {
		return fmt.Errorf("flushing %s: %w", s.mount.Point, err)
	}
	return nil
}

// shrink has the kernel forget the names that nobody uses, and tell the daemon:
// what only the kernel's cache has of it is in no record, and so nobody could
// tell the daemon later (fs/super.c, reconfigure_super: shrink_dcache_sb).
// Nothing is changed of the mount.
func (s *fileSystem) shrink() error {
	fs, err := unix.Fspick(s.root, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("shrinking the cache of %s: fspick: %w", s.mount.Point, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fmt.Errorf("shrinking the cache of %s: %w", s.mount.Point, err)
	}
	return nil
}

// clone makes a detached mount of m's, to look beneath what is mounted on top.
func (ns *namespace) clone(m *mounts.Mount) (int, error) {
	fd := -1
	err := ns.Do(func(*os.File) error {
		at, err := mounts.Open(m)
		if err != nil {
			return err
		}
		defer at.Close()
		clone, err := mounts.Clone(at, "")
		if err != nil {
			return err
		}
		defer clone.Close()
		fd, err = unix.FcntlInt(clone.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", m.Point, err)
	}
	return fd, nil
}

// optionsOf reads a superblock's options out of mountinfo (fs/fuse/inode.c,
// fuse_show_options).
func optionsOf(m *mounts.Mount, root *Node) Options {
	number := func(name string) uint32 {
		v, _ := m.SuperOption(name)
		var n uint32
		fmt.Sscan(v, &n)
		return n
	}
	has := func(name string) bool {
		_, ok := m.SuperOption(name)
		return ok
	}
	return Options{
		Type: m.FSType, Source: bytetext.Text(m.Source), Super: bytetext.Text(m.SuperOptions),
		RootMode: root.Attr.Mode & unix.S_IFMT,
		UserID:   number("user_id"), GroupID: number("group_id"),
		AllowOther: has("allow_other"), DefaultPermissions: has("default_permissions"),
		MaxRead: number("max_read"), BlockSize: number("blksize"), ReadOnly: has("ro"),
	}
}

// lookAt records what one user uses, and the names that lead there.
func (l *looker) lookAt(u *user) error {
	s := l.systems[u.conn]
	link, err := os.Readlink(u.link)
	if err != nil {
		return fmt.Errorf("where it leads: %w", err)
	}
	pin, err := openPin(u.link)
	if err != nil {
		return fmt.Errorf("holding %s: %w", link, err)
	}
	id, _, err := nodeOf(pin)
	if err == nil && u.mount == 0 { // maps does not tell
		u.mount, err = mountOf(pin)
	}
	if err != nil {
		unix.Close(pin)
		return fmt.Errorf("%s: %w", link, err)
	}
	var n *Node
	if _, held := s.pins[id]; held {
		unix.Close(pin)
		n = s.nodes[id]
	} else {
		if n, err = s.examine(pin); err != nil {
			unix.Close(pin)
			return fmt.Errorf("%s: %w", link, err)
		}
		s.pins[id] = pin
	}
	if err := l.name(s, n, u, link); err != nil {
		return err
	}
	if u.mapped || u.open != nil && n.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
		return s.recordHead(n)
	}
	if u.open != nil && u.open.Flags&unix.O_PATH == 0 && n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		return s.recordEntries(n, u)
	}
	return nil
}

// openPin holds what a link of /proc's leads to. Its daemon may be asked whether
// that still has its name.
func openPin(link string) (int, error) {
	return eintr.Get(func() (int, error) { return unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0) })
}

// mountOf is the mnt_id of an open file.
func mountOf(fd int) (int, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("its mount: statx: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("statx tells no mount id: Linux 5.8 or newer is needed")
	}
	return int(st.Mnt_id), nil
}

// nodeOf asks the kernel for a file's node: fuse's file handles are made of it
// (fs/fuse/inode.c, fuse_encode_fh). The daemon is not asked.
func nodeOf(fd int) (id, generation uint64, err error) {
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err == unix.EOPNOTSUPP {
		// Its daemon wants no exports; but the handle can be had.
		const handleFID = 0x200 // AT_HANDLE_FID, since Linux 6.5
		h, _, err = unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH|handleFID)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("its node: name_to_handle_at: %w", err)
	}
	b := h.Bytes()
	const inodeGeneration = 0x81 // FILEID_INO64_GEN
	if h.Type() != inodeGeneration || len(b) < 12 {
		return 0, 0, fmt.Errorf("its node: a file handle of type %#x, %d bytes", h.Type(), len(b))
	}
	high, low := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	return uint64(high)<<32 | uint64(low), uint64(binary.NativeEndian.Uint32(b[8:])), nil
}

// examine makes a node of an open file, or returns the one that is known.
func (s *fileSystem) examine(fd int) (*Node, error) {
	id, generation, err := nodeOf(fd)
	if err != nil {
		return nil, err
	}
	if n := s.nodes[id]; n != nil {
		return n, nil
	}
	n := &Node{ID: id, Generation: generation}
	if n.Attr, err = attrOf(fd); err != nil {
		return nil, err
	}
	if n.Attr.Mode&unix.S_IFMT == unix.S_IFLNK {
		b := make([]byte, unix.PathMax)
		l, err := eintr.Get(func() (int, error) { return unix.Readlinkat(fd, "", b) })
		if err != nil {
			return nil, fmt.Errorf("readlink: %w", err)
		}
		n.Target = bytetext.Text(b[:l])
	}
	s.nodes[id] = n
	return n, nil
}

func attrOf(fd int) (Attr, error) {
	var st unix.Statx_t
	if err := eintr.Retry(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st)
	}); err != nil {
		return Attr{}, fmt.Errorf("statx: %w", err)
	}
	t := func(t unix.StatxTimestamp) Time { return Time{t.Sec, int64(t.Nsec)} }
	return Attr{
		Ino: st.Ino, Size: st.Size, Blocks: st.Blocks, Atime: t(st.Atime), Mtime: t(st.Mtime), Ctime: t(st.Ctime),
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid, Blksize: st.Blksize,
		Rdev: encodeDev(st.Rdev_major, st.Rdev_minor),
	}, nil
}

// encodeDev is include/linux/kdev_t.h's new_encode_dev.
func encodeDev(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

// gone is what the kernel puts behind the path of what has no name any more
// (fs/d_path.c, path_with_deleted).
const gone = " (deleted)"

// name records the name that u reaches n by, and what the images will call it.
func (l *looker) name(s *fileSystem, n *Node, u *user, link string) error {
	key := devfuse.Key(u.mount, n.Attr.Ino)
	f := File{Key: key, MountID: u.mount, Ino: n.Attr.Ino, Connection: s.conn, Node: n.ID, Mode: n.Attr.Mode}
	named, was := false, (*Name)(nil)
	if n.ID == RootID {
		named = true
	} else {
		ns, err := l.namespaceOf(u.pid)
		if err != nil {
			return err
		}
		m := ns.table.ByID(u.mount)
		if m == nil {
			return fmt.Errorf("%s: it was opened through a mount (%d) that is not in the mount namespace of the process", link, u.mount)
		}
		rel, ok := below(m.Point, link)
		if !ok {
			return fmt.Errorf("%s: it is not below its mount point %s", link, m.Point)
		}
		if named, err = s.lookUp(path.Join(m.Root, rel), n.ID); err != nil {
			return err
		}
		if !named {
			if was, err = s.lastName(path.Join(m.Root, strings.TrimSuffix(rel, gone)), n.ID); err != nil {
				return err
			}
		}
	}
	if named {
		f.Path = bytetext.Text(link)
		n.Unlinked, n.Was = false, nil
	} else {
		f.Path = bytetext.Text(strings.TrimSuffix(link, gone))
		if f.Unlinked = len(n.Names) == 0; f.Unlinked {
			n.Unlinked, n.Was = true, was
		}
	}
	if i, known := l.file[key]; !known {
		l.file[key] = len(l.files)
		l.files = append(l.files, f)
	} else if named && l.files[i].Unlinked {
		l.files[i] = f
	}
	return nil
}

// below returns p relative to the directory dir, starting with "/", if it is
// dir or in it.
func below(dir, p string) (string, bool) {
	rest, ok := strings.CutPrefix(p, strings.TrimSuffix(dir, "/"))
	switch {
	case !ok:
		return "", false
	case rest == "":
		return "/", true
	}
	return rest, rest[0] == '/'
}

// lookUp walks to p from the root, records every directory on the way, and
// says whether it leads to the node id.
func (s *fileSystem) lookUp(p string, id uint64) (bool, error) {
	if known, ok := s.byPath[p]; ok {
		return known == id, nil
	}
	parent, ok, err := s.directory(path.Dir(p))
	if err != nil || !ok {
		return false, err
	}
	name := path.Base(p)
	fd, err := s.step(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking up %s: %w", p, err)
	}
	defer unix.Close(fd)
	at, _, err := nodeOf(fd)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p, err)
	}
	if at != id {
		return false, nil // another file has the name
	}
	s.named(id, parent, name, p)
	return true, nil
}

// lastName is the name p that a node had, if its directory is still there.
func (s *fileSystem) lastName(p string, id uint64) (*Name, error) {
	parent, ok, err := s.directory(path.Dir(p))
	if err != nil || !ok || parent == id || !validName(path.Base(p)) {
		return nil, err
	}
	return &Name{parent, bytetext.Text(path.Base(p))}, nil
}

func (s *fileSystem) named(id, parent uint64, name, p string) {
	s.byPath[p] = id
	n, full := s.nodes[id], Name{parent, bytetext.Text(name)}
	if !slices.Contains(n.Names, full) {
		n.Names = append(n.Names, full)
	}
}

// directory returns the node of the directory p, and whether there is one.
func (s *fileSystem) directory(p string) (uint64, bool, error) {
	if id, ok := s.byPath[p]; ok {
		return id, true, nil
	}
	parent, ok, err := s.directory(path.Dir(p))
	if err != nil || !ok {
		return 0, false, err
	}
	fd, err := s.step(parent, path.Base(p))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking up %s: %w", p, err)
	}
	n, err := s.examine(fd)
	if err != nil || n.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		unix.Close(fd)
		return 0, false, err
	}
	if _, held := s.pins[n.ID]; held {
		unix.Close(fd)
	} else {
		s.pins[n.ID] = fd
	}
	if len(n.Names) > 0 && n.Names[0] != (Name{parent, bytetext.Text(path.Base(p))}) {
		return 0, false, fmt.Errorf("directory %s has two names", p)
	}
	s.named(n.ID, parent, path.Base(p), p)
	return n.ID, true, nil
}

// step looks a name up in a directory that is held.
func (s *fileSystem) step(parent uint64, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	return eintr.Get(func() (int, error) { return unix.Openat2(s.pins[parent], name, &how) })
}

// unseen returns errUnseen if somebody uses what was not looked at.
func (l *looker) unseen(c *census) error {
	for _, u := range c.users {
		s := l.systems[u.conn]
		if s == nil {
			return fmt.Errorf("%w: %s, %s", errUnseen, describe(u.pid), u.what)
		}
		id := u.node.ID
		if c.state.Partial {
			fd, err := openPin(u.link)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", describe(u.pid), u.what, err)
			}
			id, _, err = nodeOf(fd)
			if err == nil && u.mount == 0 {
				u.mount, err = mountOf(fd)
			}
			unix.Close(fd)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", describe(u.pid), u.what, err)
			}
		}
		n := s.nodes[id]
		if n == nil {
			return fmt.Errorf("%w: %s, %s", errUnseen, describe(u.pid), u.what)
		}
		if _, ok := l.file[devfuse.Key(u.mount, n.Attr.Ino)]; !ok {
			return fmt.Errorf("%w: %s, %s", errUnseen, describe(u.pid), u.what)
		}
	}
	return nil
}

// complete puts in what is only final when everyone is stopped, out of a
// census taken then.
func (l *looker) complete(c *census) []*Record {
	var records []*Record
	for conn, s := range l.systems {
		r := s.record
		r.Devices = nil
		for _, d := range c.devices {
			if d.Connection == conn {
				r.Devices = append(r.Devices, Device{Key: d.Key(), Flags: d.Flags, Cloned: len(r.Devices) > 0,
					PID: d.Holders[0].PID, FD: d.Holders[0].FD})
			}
		}
		r.Init = initOf(c.state, conn)
		seen := make(map[uint64]bool) // descriptions, by address
		r.Handles = nil
		for _, u := range slices.Concat(c.users, c.ours) {
			if u.conn != conn {
				continue
			}
			n := s.nodes[u.node.ID]
			if n == nil {
				continue // something of our own
			}
			n.Lookups = max(n.Lookups, u.node.Lookups)
			if u.open == nil || !u.open.HasFH || seen[u.open.Address] {
				continue
			}
			spare := u.pid == os.Getpid()
			if spare && !l.spares[u.fd] {
				continue // something of our own
			}
			seen[u.open.Address] = true
			h := Handle{Node: n.ID, FH: u.open.FH, Dir: n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR,
				Flags: u.open.Flags, OpenFlags: u.open.FOpen, Known: true, Mapped: u.mapped || spare}
			if !h.Mapped { // descriptors come before mappings
				h.PID, h.FD = u.pid, u.fd
			}
			r.Handles = append(r.Handles, h)
		}
		r.Nodes = r.Nodes[:0]
		for _, n := range s.nodes {
			r.Nodes = append(r.Nodes, *n)
		}
		slices.SortFunc(r.Nodes, func(a, b Node) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b *Record) int { return int(a.ID) - int(b.ID) })
	return records
}

// errUnseen: somebody opened something after it was looked for.
var errUnseen = errors.New("something is open that was not a moment ago")

// initOf is what the kernel remembers of FUSE_INIT.
func initOf(state *fusestate.State, conn uint64) Init {
	c := state.ConnOf(unix.Mkdev(0, uint32(conn)))
	if c == nil || state.Partial || !c.Initialized {
		return Init{}
	}
	return Init{
		Known: true, Major: 7, Minor: c.Minor, MaxReadahead: uint32(min(c.MaxReadahead, fuseinit.MaxMessage)), Flags: c.Flags,
		MaxBackground: uint16(c.MaxBackground), CongestionThreshold: uint16(c.CongestionThreshold),
		MaxWrite: c.MaxWrite, TimeGran: c.TimeGran, MaxPages: uint16(c.MaxPages), MaxStackDepth: c.MaxStackDepth,
		Unsupported: c.Unsupported,
	}
}
