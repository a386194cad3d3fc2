package criuhook

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"spfs/handover"
	"spfs/internal/mounts"
)

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// external is an entry of files.img as it is dumped for an external file.
func external(id uint32, key string) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id),
		Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(id), Flags: proto.Uint32(unix.O_RDWR), Pos: proto.Uint64(7), Name: proto.String(key), Ext: proto.Bool(true),
			Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
			Mode: proto.Uint32(unix.S_IFREG | 0o644), Size: proto.Uint64(99),
		},
	}
}

// Names are put into images by what each description is: through its handle's
// mark where it has one, and nothing else is changed.
func TestFilesAreNamed(t *testing.T) {
	path := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self := os.Getpid()
	inside, err := imagePIDs(self)
	if err != nil {
		t.Fatal(err)
	}
	pid := inside[self]
	write("ids-"+strconv.Itoa(pid)+".img", image(magicIDs, marshal(t, &criucore.TaskKobjIdsEntry{
		VmId: proto.Uint32(1), FilesId: proto.Uint32(5), FsId: proto.Uint32(1), SighandId: proto.Uint32(1)})))
	var fds [][]byte
	for fd := range uint32(4) {
		fds = append(fds, marshal(t, &fdinfo.FdinfoEntry{Id: proto.Uint32(fd + 1), Flags: proto.Uint32(0),
			Type: fdinfo.FdTypes_REG.Enum(), Fd: proto.Uint32(fd)}))
	}
	write("fdinfo-5.img", image(magicFdinfo, fds...))
	keys := []string{"file[1:a]", "file[1:a]", "file[1:d]", "file[1:9]", "file[1:a]", "file[2:2]"}
	var files [][]byte
	for i, key := range keys {
		files = append(files, marshal(t, external(uint32(i+1), key)))
	}
	// A field that this program does not know.
	files[0] = protowire.AppendBytes(protowire.AppendTag(files[0], 999, protowire.BytesType), []byte("later"))
	write(filesImage, image(magicFiles, files...))

	record := &handover.Record{ID: 57, Nodes: []handover.Node{{ID: 9, Unlinked: true, Was: &handover.Name{Parent: 13, Name: "was"}}}, Handles: []handover.Handle{
		{Node: 10, FH: 100, PID: self, FD: 0}, {Node: 10, FH: 101, PID: self, FD: 1}, {Node: 13, FH: 102, Dir: true, PID: self, FD: 2},
		{Node: 9, FH: 103, PID: self, FD: 3}, {Node: 10, FH: 104, Mapped: true},
	}}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	n, err := newNamer(dir, self, []handover.File{
		{Key: "file[1:a]", MountID: 1, Ino: 10, Connection: 57, Node: 10, Path: "/mnt/d/f", Mode: unix.S_IFREG},
		{Key: "file[1:d]", MountID: 1, Ino: 13, Connection: 57, Node: 13, Path: "/mnt/d", Mode: unix.S_IFDIR},
		{Key: "file[1:9]", MountID: 1, Ino: 9, Connection: 57, Node: 9, Path: "/mnt/d/was", Mode: unix.S_IFREG, Unlinked: true},
	}, []*handover.Record{record}, []treeMount{{Mount: &mounts.Mount{ID: 1, Point: "/mnt"}}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.run(); err != nil {
		t.Fatal(err)
	}

	want := []struct {
		name string
		ext  bool
	}{
		{"/mnt/d/" + handover.Mark(0) + "/../f", false},
		{"/mnt/d/" + handover.Mark(1) + "/../f", false},
		{"/mnt/" + handover.Mark(2) + "/../d", false},
		{"/mnt/d/" + handover.Mark(3) + "/../was", false},
		{"/mnt/d/f", false}, // of a mapping
		{"file[2:2]", true}, // somebody else's
	}
	e := new(fdinfo.FileEntry)
	i := 0
	err = eachEntry(dir, filesImage, magicFiles, e, func() {
		before := external(uint32(i+1), keys[i])
		before.Reg.Name = proto.String(want[i].name)
		if !want[i].ext {
			before.Reg.Ext, before.Reg.MntId = nil, proto.Int32(1)
		}
		if unknown := string(e.ProtoReflect().GetUnknown()); (i == 0) != (unknown != "") {
			t.Errorf("entry %d: unknown fields %q", i, unknown)
		}
		e.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(e, before) {
			t.Errorf("entry %d: %v, want %v", i, e, before)
		}
		i++
	})
	if err != nil || i != len(want) {
		t.Errorf("%d entries, %v", i, err)
	}
	for i, h := range record.Handles {
		if h.Marked != (i < 4) {
			t.Errorf("handle %d: marked %v", i, h.Marked)
		}
	}
}
