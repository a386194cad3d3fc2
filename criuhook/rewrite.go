package criuhook

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/handover"
)

// While a tree with its own daemons is dumped, every open file of their mounts
// is "external" to CRIU (criu/files-reg.c: dump_one_reg_file), so that it asks
// the mounts for no name and makes no ghost file. A restore opens files by
// their names all the same, so the names are put into the images afterwards.

const filesImage = "files.img"

// namer gives the images the names of files that were external to CRIU.
type namer struct {
	dir     *os.File
	own     bool // the tree has a mount namespace of its own: the images name mounts
	byKey   map[string]handover.File
	records map[uint64]*handover.Record // by connection
	handles map[uint32]handleOf         // by the id of a description
	points  map[int]string              // mount points, by mnt_id
}

// handleOf is the handle of a description.
type handleOf struct {
	record *handover.Record
	index  int
}

func newNamer(dir *os.File, root int, files []handover.File, records []*handover.Record, mounted []treeMount, own bool) (*namer, error) {
	n := &namer{
		dir: dir, own: own,
		byKey: make(map[string]handover.File, len(files)), records: make(map[uint64]*handover.Record),
		handles: make(map[uint32]handleOf), points: make(map[int]string),
	}
	for _, f := range files {
		// Of several names of one file the first is as good as any.
		if known, ok := n.byKey[f.Key]; !ok || known.Unlinked && !f.Unlinked {
			n.byKey[f.Key] = f
		}
	}
	for _, m := range mounted {
		n.points[m.ID] = m.Point
	}
	descriptors, err := readDescriptors(dir)
	if err != nil {
		return nil, err
	}
	pids, err := imagePIDs(root)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		n.records[r.ID] = r
		for i, h := range r.Handles {
			if h.PID == 0 {
				continue
			}
			if id, ok := descriptors[descriptor{pids[h.PID], uint32(h.FD)}]; ok {
				n.handles[id] = handleOf{r, i}
			}
		}
	}
	return n, nil
}

// run rewrites the images.
func (n *namer) run() error {
	return rewriteImage(n.dir, filesImage, magicFiles, func() proto.Message { return new(fdinfo.FileEntry) }, func(m proto.Message) error {
		e := m.(*fdinfo.FileEntry).Reg
		if e == nil || !e.GetExt() {
			return nil
		}
		f, ours := n.byKey[e.GetName()]
		if !ours {
			return nil // the user's own, or a device, which stays external
		}
		name, err := n.name(e.GetId(), f)
		if err != nil {
			return fmt.Errorf("file %s: %w", f.Key, err)
		}
		e.Name = proto.String(name)
		e.Ext = nil
		if n.own {
			e.MntId = proto.Int32(int32(f.MountID))
		}
		return nil
	})
}

// name returns the name by which a restore opens a description: that of the
// file, or the one by which the stand-in knows it if it has none; through the
// mark of the description's handle, if it has one.
func (n *namer) name(id uint32, f handover.File) (string, error) {
	name := string(f.Path)
	if err := checkPath(name); err != nil {
		return "", err
	}
	point, known := n.points[f.MountID]
	if f.Unlinked {
		record := n.records[f.Connection]
		if record == nil || !known {
			return "", fmt.Errorf("%s has no name any more, and mount %d, by which it was opened, is not in the mount namespace of the tree's root", name, f.MountID)
		}
		dir := path.Dir(name)
		if !hadName(record, f.Node) {
			dir = point
		}
		name = path.Join(dir, record.GoneName(f.Node))
	}
	h, ok := n.handles[id]
	if !ok || !known || name == point && f.Mode&unix.S_IFMT != unix.S_IFDIR { // a file that is mounted has no directory there
		return name, nil
	}
	if got := h.record.Handles[h.index].Node; got != f.Node {
		return "", fmt.Errorf("it is node %d, and its handle is one of node %d", f.Node, got)
	}
	marked := handover.MarkedPath(name, point, h.index)
	if len(marked) >= unix.PathMax {
		return name, nil
	}
	h.record.Handles[h.index].Marked = true
	return marked, nil
}

// hadName tells whether it is known where the name of an unlinked node was.
func hadName(r *handover.Record, node uint64) bool {
	i, ok := slices.BinarySearchFunc(r.Nodes, node, func(n handover.Node, id uint64) int { return cmp.Compare(n.ID, id) })
	return ok && r.Nodes[i].Was != nil
}

// rewriteImage replaces an image by one in which edit has changed the entries,
// whole or not at all.
func rewriteImage(dir *os.File, name string, kind uint32, entry func() proto.Message, edit func(proto.Message) error) error {
	in, err := openIn(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer in.Close()
	temporary := name + ".new"
	out, err := openIn(dir, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	err = copyImage(w, bufio.NewReaderSize(in, 1<<16), kind, entry, edit)
	if err == nil {
		err = w.Flush()
	}
	if err2 := out.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temporary, int(dir.Fd()), name)
	}
	if err != nil {
		unix.Unlinkat(int(dir.Fd()), temporary, 0)
		return fmt.Errorf("rewriting %s: %w", in.Name(), err)
	}
	return nil
}

// copyImage copies an image, each entry as edit leaves it. Fields that this
// program does not know are kept (proto.Unmarshal).
func copyImage(w io.Writer, r io.Reader, kind uint32, entry func() proto.Message, edit func(proto.Message) error) error {
	head := binary.LittleEndian.AppendUint32(nil, magicCommon)
	if _, err := w.Write(binary.LittleEndian.AppendUint32(head, kind)); err != nil {
		return err
	}
	return readImage(r, kind, func(b []byte) error {
		m := entry()
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		if err := edit(m); err != nil {
			return err
		}
		out, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(out)))); err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	})
}
