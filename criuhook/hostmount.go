package criuhook

import "github.com/moby/sys/mountinfo"

// bindAt mounts what is mounted at path at the mount points of the machine's own
// namespace where a tree without one of its own had the file system.
func (r *restore) bindAt(fs *FileSystem, path string) error {
	for _, m := range fs.Mounts {
		if err := bindPart(path, m.Root, string(m.Point), string(m.Flags)); err != nil {
			return err
		}
		r.bound = append(r.bound, string(m.Point))
	}
	return nil
}

// mountedAlready tells whether a file system of a tree without a mount
// namespace of its own is mounted on the machine, at all its mount points. CRIU
// then opens its files, and there is nothing to stand in for.
func mountedAlready(fs *FileSystem) (bool, error) {
	for _, m := range fs.Mounts {
		on, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(string(m.Point)))
		if err != nil {
			return false, err
		}
		if len(on) == 0 || on[0].FSType != fs.Type {
			return false, nil
		}
	}
	return true, nil
}
