package rig

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// fuseMounts describes the FUSE mounts of this mount namespace.
func fuseMounts() (found []string) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return []string{"mounts that can't be listed: " + err.Error()}
	}
	for _, m := range infos {
		if isFUSE(m) {
			found = append(found, "mount of "+m.FSType+" at "+m.Mountpoint)
		}
	}
	return found
}

func isFUSE(m *mountinfo.Info) bool {
	return m.FSType == "fuse" || m.FSType == "fuseblk" || strings.HasPrefix(m.FSType, "fuse.")
}

// cgroupDirs lists the cgroups that bear a name of ours.
func cgroupDirs() (found []string) {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return []string{"cgroups that can't be listed: " + err.Error()}
	}
	for _, m := range infos {
		filepath.WalkDir(m.Mountpoint, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && (strings.Contains(d.Name(), "spfs") || strings.Contains(d.Name(), "criu")) {
				found = append(found, "cgroup "+path)
			}
			return nil
		})
	}
	return found
}

// dirEntries lists what is in dir; a dir that is not there is empty.
func dirEntries(dir string) (found []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		found = append(found, "file "+filepath.Join(dir, e.Name()))
	}
	return found
}

// difference returns what after has more than before.
func difference(after, before []string) (more []string) {
	before = slices.Clone(before)
	for _, a := range after {
		if i := slices.Index(before, a); i >= 0 {
			before = slices.Delete(before, i, i+1)
		} else {
			more = append(more, a)
		}
	}
	return more
}
