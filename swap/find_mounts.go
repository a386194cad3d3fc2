package swap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"spfs/internal/mounts"
)

// mountObstacles finds what in one namespace's mounts can't follow.
func (s *scanner) mountObstacles(table mounts.Table) []Obstacle {
	var found []Obstacle
	add := func(resource, reason, remedy string) {
		found = append(found, Obstacle{Resource: resource, Reason: reason, Remedy: remedy})
	}
	for _, m := range table {
		if ours := s.mounts[m.ID]; ours != nil {
			resource := "mount " + printable(m.Point) + " in " + ours.Namespace.String()
			for _, c := range table.Children(m) {
				add(resource, fmt.Sprintf("%s is mounted on top at %s", c.FSType, printable(c.Point)), "unmount that first")
			}
			if m.Point == "/" {
				add(resource, "it is the root of its mount namespace", "swap it from within its parent")
			} else if top := table.Top(m.Point); top != m {
				add(resource, "it is hidden below another mount", "unmount that first")
			}
			if m.HasOption("idmapped") {
				add(resource, "its user ids are mapped", "mount it without")
			}
			continue
		}
		if m.FSType == "overlay" {
			if layer := s.overlayLayer(m, table); layer != "" {
				add("overlay "+printable(m.Point), "its layer "+printable(layer)+" is on the mount", "unmount the overlay")
			}
		}
	}
	return found
}

// overlayLayer returns a layer of an overlay that lies on the file system, as
// far as the mount's options say: they hold the paths that mount(2) was given.
func (s *scanner) overlayLayer(overlay *mounts.Mount, table mounts.Table) string {
	for _, option := range strings.Split(overlay.SuperOptions, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
		default:
			continue
		}
		// fs/overlayfs/params.c: layers are separated by ":", a ":" in a name
		// has a backslash before it.
		value = unescapeOctal(value)
		for _, layer := range strings.Split(strings.ReplaceAll(value, `\:`, "\x00"), ":") {
			layer = strings.ReplaceAll(layer, "\x00", ":")
			for _, m := range table {
				if s.mounts[m.ID] != nil && strings.HasPrefix(layer, "/") && beneath(filepath.Clean(layer), m.Point) {
					return layer
				}
			}
		}
	}
	return ""
}

// machineObstacles finds loop devices and swap files on the file system, by
// the paths that the kernel prints of them.
func (s *scanner) machineObstacles() []Obstacle {
	var found []Obstacle
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is well-formed
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		if path := strings.TrimSuffix(string(text), "\n"); s.covers(path) {
			device := "/dev/" + strings.Split(f, "/")[3]
			found = append(found, Obstacle{Resource: "loop device " + device, Reason: "its file " + printable(path) + " is on the mount", Remedy: "losetup -d " + device})
		}
	}
	text, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return found // a kernel without swap
	}
	for _, path := range parseSwaps(string(text)) {
		if s.covers(path) {
			found = append(found, Obstacle{Resource: "swap file " + printable(path), Reason: "it is on the mount", Remedy: "swapoff " + printable(path)})
		}
	}
	return found
}

// parseSwaps reads the paths out of /proc/swaps (mm/swapfile.c swap_show).
func parseSwaps(text string) []string {
	var paths []string
	for i, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if i > 0 && len(fields) > 1 && fields[1] == "file" {
			paths = append(paths, unescapeOctal(fields[0]))
		}
	}
	return paths
}
