package criuhook

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/handover"
)

// served is a file system of a daemon in the images with files without a name.
func served() *FileSystem {
	return &FileSystem{
		Mounts: []Mount{{Point: "/served", Root: "/"}, {Point: "/part", Root: "/d"}},
		Record: &handover.Record{
			Nodes: []handover.Node{
				{ID: 1, Attr: handover.Attr{Mode: unix.S_IFDIR | 0o755}},
				{ID: 2, Attr: handover.Attr{Mode: unix.S_IFDIR | 0o755}, Names: []handover.Name{{Parent: 1, Name: "d"}}},
				{ID: 3, Attr: handover.Attr{Mode: unix.S_IFREG | 0o644, Size: 5}, Unlinked: true, Was: &handover.Name{Parent: 2, Name: "gone"}},
				{ID: 4, Attr: handover.Attr{Mode: unix.S_IFREG | 0o600}, Unlinked: true},
				{ID: 5, Attr: handover.Attr{Mode: unix.S_IFREG | 0o600}, Names: []handover.Name{{Parent: 2, Name: "taken"}}},
				{ID: 6, Attr: handover.Attr{Mode: unix.S_IFREG | 0o600}, Unlinked: true, Was: &handover.Name{Parent: 2, Name: "taken"}},
			},
			Handles: []handover.Handle{{Node: 3, Marked: true}},
		},
	}
}

// A placeholder has the files without a name where the images look for them.
func TestPlaceholderHasUnlinkedFiles(t *testing.T) {
	fs, err := placeholderOf(served())
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, n := range fs.Nodes {
		paths = append(paths, string(n.Path))
	}
	want := []string{"/", "/.spfs-node-4", "/d", "/d/.spfs-handle-0", "/d/.spfs-node-4", "/d/.spfs-node-6", "/d/gone", "/d/taken"}
	if !slices.Equal(paths, want) {
		t.Errorf("its files are %q, want %q", paths, want)
	}
	if n := fs.Nodes[slices.Index(paths, "/d/gone")]; n.Size != 5 || n.Mode != unix.S_IFREG|0o644 {
		t.Errorf("the unlinked file is %+v", n)
	}
}

func TestUnlinkedFilesThatCannotBeSwapped(t *testing.T) {
	if err := checkUnlinked(served()); err != nil {
		t.Errorf("plain ones: %v", err)
	}
	for says, change := range map[string]func(*handover.Node){
		"2 other names":   func(n *handover.Node) { n.Attr.Nlink = 2 },
		"a directory":     func(n *handover.Node) { n.Attr.Mode = unix.S_IFDIR | 0o755 },
		"no regular file": func(n *handover.Node) { n.Attr.Mode = unix.S_IFIFO | 0o600 },
	} {
		fs := served()
		change(&fs.Record.Nodes[2])
		err := checkUnlinked(fs)
		if err == nil {
			t.Errorf("one that is %s is let through", says)
			continue
		}
		for _, want := range []string{says, "d/gone", "/served", "--strategy handover"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
}
