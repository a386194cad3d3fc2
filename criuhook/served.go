package criuhook

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"spfs/handover"
)

// recordServed makes the manifest's part about the file systems that daemons
// in the tree serve, by st_dev, and puts the names of their open files into the
// images. mounted are the FUSE mounts of the tree's root.
func recordServed(dir *os.File, root int, session *handover.Session, mounted []treeMount, own bool) (map[uint64]*FileSystem, error) {
	records := session.Records()
	n, err := newNamer(dir, root, session.Files(), records, mounted, own)
	if err != nil {
		return nil, err
	}
	if err := n.run(); err != nil {
		return nil, err
	}
	served := make(map[uint64]*FileSystem, len(records))
	for _, r := range records {
		dev := unix.Mkdev(0, uint32(r.ID))
		fs := &FileSystem{
			Type: r.Options.Type, Source: r.Options.Source, Options: r.Options.Super,
			Record: r,
		}
		for _, m := range mounted {
			if m.Dev != dev {
				continue
			}
			mount := Mount{Point: Text(m.Point), Root: Text(m.Root), Flags: Text(m.Options)}
			if own {
				mount.Key = m.key
			}
			fs.Mounts = append(fs.Mounts, mount)
		}
		if len(fs.Mounts) == 0 {
			return nil, fmt.Errorf("FUSE connection %d is not mounted in the mount namespace of the tree's root", r.ID)
		}
		served[dev] = fs
	}
	return served, nil
}
