package criuhook

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/handover"
	"spfs/internal/eintr"
	"spfs/internal/mounts"
)

// record makes the manifest of a tree that CRIU has stopped and dumped: of
// every file on a FUSE mount that the images tell CRIU to open, what a
// placeholder of it must look like. It looks the files up through the tree's
// own mounts, so their daemons must be running.
//
// The images, not /proc, say what is needed: they are what CRIU goes by.
//
// The session, if not nil, is that of a tree with daemons of its own. Of what
// they serve nothing is looked up; the session's records go into the manifest,
// and the names of open files into the images.
func record(dir *os.File, root int, session *handover.Session) (*Manifest, error) {
	own, err := ownNamespace(root)
	if err != nil {
		return nil, err
	}
	files, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	mounts, err := readMounts(dir)
	if err != nil {
		return nil, err
	}
	live, err := fuseMounts(root)
	if err != nil {
		return nil, err
	}
	if !own {
		mounts, files, err = assign(live, files)
		if err != nil {
			return nil, err
		}
	}

	m := &Manifest{HostNamespace: !own}
	var served map[uint64]*FileSystem
	if session != nil {
		m.IgnoreCgroups = session.CRIU().Temporary
		if served, err = recordServed(dir, root, session, live, own); err != nil {
			return nil, err
		}
	}
	byID := make(map[int]*imageMount, len(mounts))
	for i := range mounts {
		byID[mounts[i].id] = &mounts[i]
	}
	recorders := make(map[uint64]*recorder)
	for i := range live {
		lm := &live[i]
		im := byID[lm.ID]
		if served[lm.Dev] != nil {
			continue
		}
		if im == nil || own && im.key == "" {
			continue // bound by CRIU itself from another mount, or not used
		}
		r := recorders[lm.Dev]
		if r == nil {
			r = &recorder{
				fs:    FileSystem{Type: lm.FSType, Source: Text(lm.Source), Options: Text(lm.SuperOptions)},
				nodes: make(map[string]*Node),
				pos:   make(map[string]map[int64]bool),
			}
			defer r.close()
			recorders[lm.Dev] = r
		}
		if err := r.addMount(root, lm, im.key); err != nil {
			return nil, err
		}
	}

	for _, f := range files {
		im := byID[f.mount]
		if im == nil || !im.fuse || served[im.dev] != nil {
			continue
		}
		r := recorders[im.dev]
		if r == nil {
			return nil, fmt.Errorf("%s: its mount %s was not given to CRIU as external (--external mnt[%s]:KEY)", f.path, im.point, im.point)
		}
		if err := r.addFile(im, f); err != nil {
			return nil, err
		}
	}
	// What is mounted on top of a FUSE mount needs a place there.
	for _, im := range mounts {
		on := byID[im.parent]
		if on == nil || !on.fuse || recorders[on.dev] == nil {
			continue
		}
		if err := recorders[on.dev].addFile(on, imageFile{path: im.point, size: -1}); err != nil {
			return nil, err
		}
	}

	for _, r := range recorders {
		if err := r.readPositions(); err != nil {
			return nil, err
		}
		m.FileSystems = append(m.FileSystems, r.result())
	}
	for _, fs := range served {
		m.FileSystems = append(m.FileSystems, *fs)
	}
	sort.Slice(m.FileSystems, func(i, j int) bool {
		return m.FileSystems[i].Mounts[0].Point < m.FileSystems[j].Mounts[0].Point
	})
	if m.Images, err = sealImages(dir); err != nil {
		return nil, err
	}
	return m, nil
}

// assign finds the mounts of files whose images name none, because the tree
// shares its mount namespace: a file's is the mount with the longest mount
// point above it. Only mounts that the tree has something open on count.
func assign(live []treeMount, files []imageFile) ([]imageMount, []imageFile, error) {
	var used []imageMount
	seen := make(map[int]bool)
	var on []imageFile
	for _, f := range files {
		var best *treeMount
		for i := range live {
			m := &live[i]
			// Of mounts at one point the last is on top.
			if _, ok := below(m.Point, f.path); ok && (best == nil || len(m.Point) >= len(best.Point)) {
				best = m
			}
		}
		if best == nil {
			continue
		}
		f.mount = best.ID
		on = append(on, f)
		if !seen[best.ID] {
			seen[best.ID] = true
			used = append(used, imageMount{
				id: best.ID, parent: -1, dev: best.Dev, fuse: true,
				root: best.Root, point: best.Point,
				source: best.Source, options: best.SuperOptions,
			})
		}
	}
	return used, on, nil
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

// recorder collects the nodes of one file system.
type recorder struct {
	fs    FileSystem
	views []view
	nodes map[string]*Node
	pos   map[string]map[int64]bool // directory positions to be found again
}

// view is a part of the file system that can be reached, through a mount.
type view struct {
	root string // what part it is
	dir  *os.File
}

// open opens a path beneath the part, that neither a symlink nor another mount
// bends.
func (v *view) open(path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	return eintr.Get(func() (int, error) { return unix.Openat2(int(v.dir.Fd()), path, &how) })
}

func (r *recorder) close() {
	for _, v := range r.views {
		v.dir.Close()
	}
}

// addMount opens a mount of the tree and records its root.
func (r *recorder) addMount(pid int, m *treeMount, key string) error {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("the root of process %d: %w", pid, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, m.Point, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Point, err)
	}
	point := os.NewFile(uintptr(fd), m.Point)
	defer point.Close()
	id, err := mountOf(point)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Point, err)
	}
	if id != m.ID {
		return fmt.Errorf("mount %s: another mount hides it; unmount that first", m.Point)
	}
	// A clone, to look beneath what is mounted on top of it.
	var clone *os.File
	err = inNamespace(pid, func() error {
		clone, err = mounts.Clone(point, "")
		return err
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Point, err)
	}
	r.views = append(r.views, view{m.Root, clone})
	r.fs.Mounts = append(r.fs.Mounts, Mount{Key: key, Point: Text(m.Point), Root: Text(m.Root), Flags: Text(m.Options)})
	return r.addNode(m.Root, nil)
}

// mountOf returns the mnt_id of an open file.
func mountOf(f *os.File) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			var id int
			_, err := fmt.Sscan(v, &id)
			return id, err
		}
	}
	return 0, errors.New("no mnt_id in fdinfo")
}

// addFile records a file that the images name, and its parents.
func (r *recorder) addFile(m *imageMount, f imageFile) error {
	rel, ok := below(m.point, f.path)
	if !ok {
		return fmt.Errorf("the images have %s on mount %s, which it is not below", f.path, m.point)
	}
	p := path.Join(m.root, rel)
	if f.bound {
		// bind(2) is done again, and wants the name to be free.
		return r.addNode(path.Dir(p), nil)
	}
	if err := r.addNode(p, &f); err != nil {
		return err
	}
	n := r.nodes[p]
	if n != nil && n.Mode&unix.S_IFMT == unix.S_IFDIR && f.flags&unix.O_PATH == 0 && f.pos > 0 {
		if r.pos[p] == nil {
			r.pos[p] = make(map[int64]bool)
		}
		r.pos[p][f.pos] = true
	}
	return nil
}

// addNode records p and its parents. A p that does not exist is left out:
// the images bring such a file with them (CRIU's ghost files), or it is gone
// and CRIU has said so. f, if not nil, is what CRIU will check.
func (r *recorder) addNode(p string, f *imageFile) error {
	if p != "/" {
		if err := r.addNode(path.Dir(p), nil); err != nil {
			return err
		}
	}
	n := r.nodes[p]
	if n == nil {
		var err error
		n, err = r.look(p)
		if err != nil {
			return fmt.Errorf("%s, file %s: %w", r.fs.Mounts[0].Point, p, err)
		}
		if n == nil {
			return nil
		}
		r.nodes[p] = n
	}
	if f != nil {
		if f.size >= 0 {
			n.Size = f.size
		}
		if f.mode != 0 {
			n.Mode = f.mode
		}
	}
	return nil
}

// look asks the file system about a path; nil if there is nothing.
func (r *recorder) look(p string) (*Node, error) {
	// The longest part that holds it, so that no directory is left out that
	// could be asked.
	var v *view
	above := false
	for i := range r.views {
		if _, ok := below(r.views[i].root, p); ok && (v == nil || len(r.views[i].root) < len(v.root)) {
			v = &r.views[i]
		}
		if _, ok := below(p, r.views[i].root); ok {
			above = true
		}
	}
	if v == nil && (above || p == "/") {
		// A directory above the part that is bound: nobody in the tree
		// can see more of it than that it is one.
		return &Node{Path: Text(p), Mode: unix.S_IFDIR | 0o755}, nil
	}
	if v == nil {
		return nil, errors.New("no mount of the tree's root shows it")
	}
	rel, _ := below(v.root, p)
	fd := -1
	var err error
	if rel == "/" {
		fd, err = unix.Dup(int(v.dir.Fd()))
	} else {
		fd, err = v.open(rel[1:], unix.O_PATH|unix.O_NOFOLLOW)
	}
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := eintr.Retry(func() error { return unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH) }); err != nil {
		return nil, err
	}
	n := &Node{
		Path:  Text(p),
		Mode:  st.Mode,
		UID:   st.Uid,
		GID:   st.Gid,
		Atime: Time{st.Atim.Sec, st.Atim.Nsec},
		Mtime: Time{st.Mtim.Sec, st.Mtim.Nsec},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = st.Rdev
	case unix.S_IFLNK:
		b := make([]byte, unix.PathMax)
		l, err := eintr.Get(func() (int, error) { return unix.Readlinkat(fd, "", b) })
		if err != nil {
			return nil, err
		}
		n.Target = Text(b[:l])
	}
	return n, nil
}

// readPositions reads the directories that the tree has open beyond their
// start, as far as it has.
func (r *recorder) readPositions() error {
	for p, want := range r.pos {
		if err := r.readEntries(r.nodes[p], want); err != nil {
			return fmt.Errorf("%s, directory %s: %w", r.fs.Mounts[0].Point, p, err)
		}
	}
	return nil
}

func (r *recorder) readEntries(n *Node, want map[int64]bool) error {
	for i := range r.views {
		rel, ok := below(r.views[i].root, string(n.Path))
		if !ok {
			continue
		}
		fd, err := r.views[i].open("."+rel, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		left := len(want)
		buf := make([]byte, 64<<10)
		for left > 0 {
			got, err := eintr.Get(func() (int, error) { return unix.Getdents(fd, buf) })
			if err != nil {
				return err
			}
			if got == 0 {
				return nil // entries went away since; all that are left are known
			}
			for _, d := range parseDirents(buf[:got]) {
				n.Seen = append(n.Seen, d)
				if want[d.Cookie] {
					if left--; left == 0 {
						break
					}
				}
			}
		}
		return nil
	}
	return errors.New("no mount of the tree's root shows it")
}

// result returns what was recorded, parents first.
func (r *recorder) result() FileSystem {
	fs := r.fs
	for _, n := range r.nodes {
		fs.Nodes = append(fs.Nodes, *n)
	}
	sort.Slice(fs.Nodes, func(i, j int) bool { return fs.Nodes[i].Path < fs.Nodes[j].Path })
	return fs
}
