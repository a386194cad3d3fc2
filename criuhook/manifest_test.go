package criuhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/handover"
)

// sample is a manifest with something in every field.
func sample() *Manifest {
	return &Manifest{
		Images: []Image{{"core-1.img", 3, 4}, {inventory, 1, 2}},
		FileSystems: []FileSystem{{
			Type: "fuse.bindfs", Source: "/srv/a b", Options: "rw,user_id=0",
			Mounts: []Mount{
				{Key: "spfs-0", Point: "/mnt", Root: "/", Flags: "rw,nosuid"},
				{Key: "spfs-1", Point: "/part", Root: "/d", Flags: "ro"},
			},
			Nodes: []Node{
				{Path: "/", Mode: unix.S_IFDIR | 0o755, Mtime: Time{1, 2}},
				{Path: "/d", Mode: unix.S_IFDIR | 0o1777, UID: 7, GID: 8, Seen: []Dirent{{".", 1}, {"f", 1 << 62}}},
				{Path: "/d/\xff%\uFFFD", Mode: unix.S_IFREG | 0o4644, Size: 1 << 40, Atime: Time{3, 999_999_999}},
				{Path: "/d/fifo", Mode: unix.S_IFIFO | 0o600},
				{Path: "/d/link", Mode: unix.S_IFLNK | 0o777, Target: "../../etc/passwd"},
				{Path: "/d/null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
			},
		}},
	}
}

// sampleServed is a manifest of a tree with its own daemon.
func sampleServed() *Manifest {
	m := sample()
	m.IgnoreCgroups = true
	m.FileSystems = append(m.FileSystems, FileSystem{
		Type: "fuse.bindfs", Source: "/data", Options: "rw",
		Mounts: []Mount{{Key: "spfs-2", Point: "/served", Root: "/", Flags: "rw"}},
		Record: &handover.Record{
			ID:      57,
			Devices: []handover.Device{{Key: "file[3a:2]", PID: 7, FD: 4}},
			Options: handover.Options{Type: "fuse.bindfs", Source: "/data", RootMode: unix.S_IFDIR, Super: "rw"},
			Nodes: []handover.Node{
				{ID: 1, Lookups: 1, Attr: handover.Attr{Mode: unix.S_IFDIR | 0o755}},
				{ID: 5, Unlinked: true, Whole: true, Attr: handover.Attr{Mode: unix.S_IFREG | 0o644}},
			},
			Handles: []handover.Handle{{Node: 5, FH: 1, PID: 8, FD: 3}},
		},
	})
	return m
}

func encoded(t testing.TB, m *Manifest) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestManifestComesBackAsItWas(t *testing.T) {
	for version, want := range map[string]*Manifest{"1": sample(), "2": sampleServed()} {
		b := encoded(t, want)
		got, err := DecodeManifest(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if head := manifestMagic + " " + version + " "; !strings.HasPrefix(string(b), head) {
			t.Errorf("it starts with %.20q, want %q", b, head)
		}
	}
}

// A manifest may not hold what its version does not have.
func TestManifestOfAWrongVersion(t *testing.T) {
	body, err := json.Marshal(sampleServed())
	if err != nil {
		t.Fatal(err)
	}
	b := fmt.Appendf(nil, "%s 1 %d %s\n%s", manifestMagic, len(body), manifestSum(1, len(body), body), body)
	if _, err := DecodeManifest(b); !errors.Is(err, ErrBadManifest) {
		t.Errorf("version 1 with a record: %v", err)
	}
}

func TestRecordsAreNotTrusted(t *testing.T) {
	for name, spoil := range map[string]func(*FileSystem){
		"record without a device":  func(fs *FileSystem) { fs.Record.Devices = nil },
		"record and nodes":         func(fs *FileSystem) { fs.Nodes = []Node{{Path: "/", Mode: unix.S_IFDIR}} },
		"handle of a missing node": func(fs *FileSystem) { fs.Record.Handles[0].Node = 6 },
		"device key of nothing":    func(fs *FileSystem) { fs.Record.Devices[0].Key = "" },
	} {
		m := sampleServed()
		spoil(&m.FileSystems[1])
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestAnyByteChangedIsSeen(t *testing.T) {
	good := encoded(t, sample())
	for i := range good {
		for _, flip := range []byte{1, 0x20, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= flip
			_, err := DecodeManifest(b)
			if !errors.Is(err, ErrBadManifest) && !errors.Is(err, ErrNewerManifest) {
				t.Fatalf("byte %d (%q) changed to %q: %v", i, good[i], b[i], err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("byte %d: error of several lines: %v", i, err)
			}
		}
	}
}

func TestManifestCutShortOrTooLongIsSeen(t *testing.T) {
	good := encoded(t, sample())
	for n := range good {
		if _, err := DecodeManifest(good[:n]); !errors.Is(err, ErrBadManifest) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := DecodeManifest(append(good, ' ')); !errors.Is(err, ErrBadManifest) {
		t.Errorf("a byte too long: %v", err)
	}
}

func TestNewerManifestIsToldFromADamagedOne(t *testing.T) {
	body := []byte(`{"of":"the future"}`)
	b := fmt.Appendf(nil, "%s 3 %d %s\n%s", manifestMagic, len(body), manifestSum(3, len(body), body), body)
	if _, err := DecodeManifest(b); !errors.Is(err, ErrNewerManifest) || errors.Is(err, ErrBadManifest) {
		t.Errorf("version 3: %v", err)
	}
}

// TestManifestIsNotTrusted gives manifests with a right checksum and an
// impossible content.
func TestManifestIsNotTrusted(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"image outside":          func(m *Manifest) { m.Images[0].Name = "../core-1.img" },
		"image twice":            func(m *Manifest) { m.Images[0].Name = inventory },
		"image of negative size": func(m *Manifest) { m.Images[0].Size = -1 },
		"no mount":               func(m *Manifest) { m.FileSystems[0].Mounts = nil },
		"point twice":            func(m *Manifest) { m.FileSystems[0].Mounts[1].Point = "/mnt" },
		"point not absolute":     func(m *Manifest) { m.FileSystems[0].Mounts[0].Point = "mnt" },
		"root with dots":         func(m *Manifest) { m.FileSystems[0].Mounts[0].Root = "/../d" },
		"root not listed":        func(m *Manifest) { m.FileSystems[0].Mounts[0].Root = "/e" },
		"no key":                 func(m *Manifest) { m.FileSystems[0].Mounts[0].Key = "" },
		"key twice":              func(m *Manifest) { m.FileSystems[0].Mounts[0].Key = "spfs-1" },
		"key that ends itself":   func(m *Manifest) { m.FileSystems[0].Mounts[0].Key = "a]:/etc" },
		"dots":                   func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = "/d/../../x" },
		"dot":                    func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = "/d/./x" },
		"two slashes":            func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = "/d//x" },
		"zero byte":              func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = "/d/x\x00y" },
		"long name":              func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = Text("/d/" + strings.Repeat("x", 256)) },
		"long path":              func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = Text(strings.Repeat("/d", 2048)) },
		"no parent":              func(m *Manifest) { m.FileSystems[0].Nodes[2].Path = "/e/x" },
		"below a link":           func(m *Manifest) { m.FileSystems[0].Nodes[5].Path = "/d/link/x" },
		"node twice":             func(m *Manifest) { m.FileSystems[0].Nodes[5].Path = "/d/link" },
		"negative size":          func(m *Manifest) { m.FileSystems[0].Nodes[2].Size = -1 },
		"mode beyond":            func(m *Manifest) { m.FileSystems[0].Nodes[2].Mode |= 1 << 20 },
		"no type":                func(m *Manifest) { m.FileSystems[0].Nodes[2].Mode = 0o644 },
		"block device":           func(m *Manifest) { m.FileSystems[0].Nodes[5].Mode = unix.S_IFBLK | 0o666 },
		"memory as a device":     func(m *Manifest) { m.FileSystems[0].Nodes[5].Rdev = unix.Mkdev(1, 1) },
		"other device":           func(m *Manifest) { m.FileSystems[0].Nodes[5].Rdev = unix.Mkdev(8, 0) },
		"number of no device":    func(m *Manifest) { m.FileSystems[0].Nodes[2].Rdev = 5 },
		"link without target":    func(m *Manifest) { m.FileSystems[0].Nodes[4].Target = "" },
		"target of no link":      func(m *Manifest) { m.FileSystems[0].Nodes[2].Target = "x" },
		"nanoseconds":            func(m *Manifest) { m.FileSystems[0].Nodes[2].Mtime[1] = 1e9 },
		"entries of a file":      func(m *Manifest) { m.FileSystems[0].Nodes[2].Seen = []Dirent{{"x", 1}} },
		"entry with a slash":     func(m *Manifest) { m.FileSystems[0].Nodes[1].Seen[1].Name = "a/b" },
	} {
		t.Run(name, func(t *testing.T) {
			m := sample()
			spoil(m)
			if _, err := m.Encode(); err == nil {
				t.Error("Encode takes it")
			}
			body, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			b := fmt.Appendf(nil, "%s 1 %d %s\n%s", manifestMagic, len(body), manifestSum(1, len(body), body), body)
			if _, err := DecodeManifest(b); !errors.Is(err, ErrBadManifest) {
				t.Errorf("DecodeManifest: %v", err)
			}
		})
	}
}

func TestImagesAreHeldAgainstTheManifest(t *testing.T) {
	const content = "thirteen byte"
	for name, c := range map[string]struct {
		change func(path string) error
		want   string // in the error; empty: none
	}{
		"unchanged":    {func(string) error { return nil }, ""},
		"a byte":       {func(p string) error { return os.WriteFile(p, []byte("thirteen bytf"), 0o600) }, "changed"},
		"cut short":    {func(p string) error { return os.Truncate(p, 12) }, "cut short: 12 of 13"},
		"longer":       {func(p string) error { return os.Truncate(p, 14) }, "changed"},
		"gone":         {os.Remove, "is missing"},
		"without list": {func(p string) error { return os.Remove(filepath.Join(filepath.Dir(p), ManifestName)) }, "no " + ManifestName},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			image := filepath.Join(path, inventory)
			if err := os.WriteFile(image, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			dir, err := openImages(path)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			m := &Manifest{}
			if m.Images, err = sealImages(dir); err != nil {
				t.Fatal(err)
			}
			if err := m.write(dir); err != nil {
				t.Fatal(err)
			}
			if err := c.change(image); err != nil {
				t.Fatal(err)
			}
			_, err = loadManifest(dir)
			switch {
			case name == "gone":
				// It was the only one: the directory is empty.
				if err == nil || !strings.Contains(err.Error(), "holds no images") {
					t.Errorf("error %v", err)
				}
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(encoded(f, sample()))
	f.Add([]byte("spfs-manifest 1 2 x\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err == nil {
			if _, err := m.Encode(); err != nil {
				t.Errorf("decoded, but not encoded: %v", err)
			}
			return
		}
		// The checksum keeps the fuzzer out: try the rest with a right one.
		_, body, _ := bytes.Cut(b, []byte("\n"))
		b = fmt.Appendf(nil, "%s 1 %d %s\n%s", manifestMagic, len(body), manifestSum(1, len(body), body), body)
		if m, err = DecodeManifest(b); err != nil {
			return
		}
		for _, fs := range m.FileSystems {
			for _, n := range fs.Nodes {
				if p := filepath.Clean(string(n.Path)); p != string(n.Path) || !filepath.IsAbs(p) {
					t.Errorf("path %q", n.Path)
				}
			}
		}
	})
}
