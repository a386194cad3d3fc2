package handover

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// sample is a record with something in every field.
func sample() *Record {
	return &Record{
		ID:      57,
		Devices: []Device{{Key: "file[3a:2]", Flags: unix.O_RDWR, Cloned: true, PID: 7, FD: 4}},
		Init: Init{Known: true, Major: 7, Minor: 45, MaxReadahead: 131072, Flags: 1<<33 | 1, MaxBackground: 12,
			CongestionThreshold: 9, MaxWrite: 1 << 20, TimeGran: 1, MaxPages: 256, MaxStackDepth: 1, Unsupported: 1 << 39},
		Options: Options{Type: "fuse.bindfs", Source: "/srv/a b\xff", RootMode: unix.S_IFDIR, UserID: 1, GroupID: 2,
			AllowOther: true, DefaultPermissions: true, MaxRead: 4096, BlockSize: 512, ReadOnly: true, Super: "rw,user_id=1"},
		Statfs: Statfs{1, 2, 3, 4, 5, 6, 7, 8},
		Nodes: []Node{
			{ID: 1, Lookups: 1, Attr: Attr{Ino: 9, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Mtime: Time{1, 2}},
				Entries: []Entry{{".", 9, unix.DT_DIR, 1}, {"f", 10, unix.DT_REG, 2}}},
			{ID: 5, Generation: 1, Lookups: 3, Names: []Name{{1, "d"}}, Attr: Attr{Mode: unix.S_IFDIR | 0o700}},
			{ID: 7, Lookups: 2, Names: []Name{{5, "f"}, {1, "link\xfe"}}, Attr: Attr{Mode: unix.S_IFREG | 0o4644, Size: 8192},
				Xattrs: []Xattr{{"user.a", "\x00\x01"}}, Content: []Span{{0, []byte("abc")}, {4096, []byte("def")}}},
			{ID: 8, Names: []Name{{5, "s"}}, Attr: Attr{Mode: unix.S_IFLNK | 0o777}, Target: "../x"},
			{ID: 1 << 63, Unlinked: true, Was: &Name{5, "gone"}, Whole: true, Attr: Attr{Mode: unix.S_IFREG, Size: 1}, Content: []Span{{0, []byte("x")}}},
		},
		Handles: []Handle{{Node: 7, FH: 1 << 47, Flags: unix.O_RDWR, OpenFlags: 2, Known: true, Mapped: true, Marked: true}, {Node: 5, FH: 0, Dir: true}},
	}
}

func TestRecordComesBackAsItWas(t *testing.T) {
	want := sample()
	if err := want.Check(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := new(Record)
	if err := json.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestBadRecordsAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(r *Record){
		"no device":              func(r *Record) { r.Devices = nil },
		"key twice":              func(r *Record) { r.Devices = append(r.Devices, r.Devices[0]) },
		"key with a space":       func(r *Record) { r.Devices[0].Key = "a b" },
		"no root":                func(r *Record) { r.Nodes = r.Nodes[1:] },
		"node twice":             func(r *Record) { r.Nodes[2].ID = r.Nodes[1].ID },
		"node 0":                 func(r *Record) { r.Nodes[0].ID = 0 },
		"root of another kind":   func(r *Record) { r.Nodes[0].Attr.Mode = unix.S_IFREG },
		"root with a name":       func(r *Record) { r.Nodes[0].Names = []Name{{1, "x"}} },
		"parent missing":         func(r *Record) { r.Nodes[2].Names[0].Parent = 6 },
		"parent is a file":       func(r *Record) { r.Nodes[3].Names[0].Parent = 7 },
		"circle":                 func(r *Record) { r.Nodes[1].Names[0].Parent = 5 },
		"directory of two names": func(r *Record) { r.Nodes[1].Names = []Name{{1, "d"}, {1, "e"}} },
		"name with a slash":      func(r *Record) { r.Nodes[2].Names[0].Name = "../etc" },
		"name is ..":             func(r *Record) { r.Nodes[2].Names[0].Name = ".." },
		"one name, two nodes":    func(r *Record) { r.Nodes[3].Names[0] = r.Nodes[2].Names[0] },
		"nameless, not unlinked": func(r *Record) { r.Nodes[3].Names = nil },
		"unlinked with a name":   func(r *Record) { r.Nodes[3].Unlinked = true },
		"content beyond the end": func(r *Record) { r.Nodes[2].Attr.Size = 4098 },
		"content that overlaps":  func(r *Record) { r.Nodes[2].Content[1].Offset = 2 },
		"handle of no node":      func(r *Record) { r.Handles[0].Node = 6 },
		"handle of other kind":   func(r *Record) { r.Handles[0].Dir = true },
		"handle made up":         func(r *Record) { r.Handles[0].FH = FirstMadeUp + 3 },
		"type ext4":              func(r *Record) { r.Options.Type = "ext4" },
		"protocol 8":             func(r *Record) { r.Init.Major = 8 },
		"huge max_write":         func(r *Record) { r.Init.MaxWrite = 1 << 31 },
		"time":                   func(r *Record) { r.Nodes[0].Attr.Mtime[1] = 1e9 },
		"no kind of file":        func(r *Record) { r.Nodes[2].Attr.Mode = 0o644 },
		"entry with a slash":     func(r *Record) { r.Nodes[0].Entries[1].Name = "a/b" },
		"was in no directory":    func(r *Record) { r.Nodes[4].Was.Parent = 7 },
		"was, but is":            func(r *Record) { r.Nodes[3].Was = &Name{1, "x"} },
		"xattr without a name":   func(r *Record) { r.Nodes[2].Xattrs[0].Name = "" },
	} {
		r := sample()
		spoil(r)
		if err := r.Check(); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	b, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(Record)
		if json.Unmarshal(b, r) != nil || r.Check() != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back := new(Record)
		if err := json.Unmarshal(again, back); err != nil {
			t.Fatal(err)
		}
		if err := back.Check(); err != nil {
			t.Error(err)
		}
	})
}
