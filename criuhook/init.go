package criuhook

import (
	"fmt"
	"strings"

	"spfs/internal/exit"
	"spfs/internal/fuseinit"
)

// InitChange is what a daemon's connection is to have otherwise than it was
// negotiated.
type InitChange struct {
	Point  string // a mount point; empty: all whose daemon is in the images
	Change *fuseinit.Change
}

// ParseInitChange reads "[MOUNTPOINT:]FLAGS".
func ParseInitChange(s string) (InitChange, error) {
	var c InitChange
	words := s
	if strings.HasPrefix(s, "/") {
		// No flag has a colon in it, a mount point may.
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			return c, fmt.Errorf("%q: no flags, which follow a mount point and a colon", s)
		}
		c.Point, words = s[:i], s[i+1:]
	}
	var err error
	c.Change, err = fuseinit.ParseChange(words)
	return c, err
}

// changeInit makes the records what --init says.
func (r *restore) changeInit() error {
	for _, c := range r.o.Init {
		if c.Point != "" {
			fs := r.manifest.find(c.Point)
			switch {
			case fs == nil:
				return exit.Usage("--init %s: the tree has no FUSE mount there, only at: %s", c.Point, r.manifest.points())
			case fs.Record == nil:
				return exit.Usage("--init %s: its daemon is not in the images, and negotiates by itself", c.Point)
			}
			fs.Record.Init.Apply(c.Change)
			continue
		}
		if r.manifest.served() == nil {
			return exit.Usage("--init: no daemon of a FUSE mount is in the images, and those outside negotiate by themselves")
		}
		for i := range r.manifest.FileSystems {
			if record := r.manifest.FileSystems[i].Record; record != nil {
				record.Init.Apply(c.Change)
			}
		}
	}
	return nil
}
