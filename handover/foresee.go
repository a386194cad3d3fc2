package handover

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/devfuse"
	"spfs/internal/freezer"
	"spfs/internal/fusestate"
	"spfs/internal/mounts"
)

// CRIU takes long to begin: it finds out what the kernel can do. So it is started
// while the tree runs, with what it will probably have to be told, and waits
// before it looks at the tree ("pre-dump") until that is stopped. If it then
// turns out that something else must be told, it is started again.

// foresee tells what CRIU will have to be told, as far as that can be seen
// without stopping anybody. Nothing is changed but that placeholders are made,
// which are used if the devices are still the same.
func (s *stopper) foresee() (CRIU, error) {
	pids, err := living(s.o.Root)
	if err != nil {
		return CRIU{}, err
	}
	if s.placeholders, err = devfuse.Find(pids); err != nil {
		return CRIU{}, err
	}
	if len(s.placeholders) == 0 {
		return CRIU{}, ErrNoDaemon
	}
	if err := devfuse.MakePlaceholders(s.placeholders); err != nil {
		return CRIU{}, err
	}
	h, err := freezer.Find()
	if err != nil {
		return CRIU{}, err
	}
	own, err := ownCgroup(h, pids, nil)
	if err != nil {
		return CRIU{}, err
	}
	tell := CRIU{FreezeCgroup: h.Path(temporaryCgroup(s.o.Root)), Temporary: own == nil}
	if own != nil {
		tell.FreezeCgroup = own.Path()
	}
	served := make(map[uint64]bool)
	for _, d := range s.placeholders {
		tell.External = append(tell.External, d.Key())
		served[unix.Mkdev(0, uint32(d.Connection))] = true
	}
	files, err := filesOf(pids, served)
	tell.External = append(tell.External, files...)
	return tell, err
}

// filesOf are keys of the files on file systems that processes use, and of a few
// more.
func filesOf(pids []int, served map[uint64]bool) ([]string, error) {
	known := make(map[string]bool)     // namespaces
	mounted := make(map[int]uint64)    // st_dev by mnt_id
	mountsOf := make(map[uint64][]int) // the reverse
	for _, pid := range pids {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || known[ns] {
			continue // it has ended
		}
		known[ns] = true
		table, err := mounts.Of(pid)
		if err != nil {
			return nil, err
		}
		for _, m := range table {
			if served[m.Dev] && mounted[m.ID] == 0 {
				mounted[m.ID] = m.Dev
				mountsOf[m.Dev] = append(mountsOf[m.Dev], m.ID)
			}
		}
	}
	state := fusestate.FromProcOf(pids, mounted)
	var keys []string
	for i := range state.Files {
		keys = append(keys, devfuse.Key(state.Files[i].Mount, state.Files[i].Ino))
	}
	for i := range state.Places {
		keys = append(keys, devfuse.Key(state.Places[i].Mount, state.Places[i].Ino))
	}
	for i := range state.Mappings {
		// By which mount is not told.
		for _, id := range mountsOf[state.Mappings[i].Node.Dev] {
			keys = append(keys, devfuse.Key(id, state.Mappings[i].Ino))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// takePlaceholders makes placeholders for the devices of a stopped tree, or
// takes those that were made before, if the devices are the same.
func (s *stopper) takePlaceholders() error {
	made := s.placeholders
	s.placeholders = nil
	if sameDevices(made, s.census.devices) {
		for i, d := range s.census.devices {
			d.TakePlaceholder(made[i])
		}
		return nil
	}
	closeAll(made)
	return devfuse.MakePlaceholders(s.census.devices)
}

func closeAll(devices []*devfuse.Description) {
	for _, d := range devices {
		d.Close()
	}
}

// Covers tells whether a CRIU that was told c knows all that it must be told.
func (c CRIU) Covers(must CRIU) bool {
	if c.FreezeCgroup != must.FreezeCgroup || c.Temporary != must.Temporary {
		return false
	}
	told := make(map[string]bool, len(c.External))
	for _, key := range c.External {
		told[key] = true
	}
	return !slices.ContainsFunc(must.External, func(key string) bool { return !told[key] })
}
