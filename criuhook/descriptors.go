package criuhook

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"

	"spfs/internal/proctree"
)

// The kinds of images that say which process has what open (include/magic.h of
// CRIU).
const (
	magicIDs    = 0x54432030
	magicFdinfo = 0x56213732
)

// descriptor is a process's, by the pid that it has in the images.
type descriptor struct {
	pid int
	fd  uint32
}

// readDescriptors returns for each descriptor of the tree which entry of
// files.img it refers to.
func readDescriptors(dir *os.File) (map[descriptor]uint32, error) {
	names, err := imageNames(dir)
	if err != nil {
		return nil, err
	}
	all := make(map[descriptor]uint32)
	ids, entry := new(criucore.TaskKobjIdsEntry), new(fdinfo.FdinfoEntry)
	for _, name := range names {
		number, ok := strings.CutPrefix(name, "ids-")
		pid, err := strconv.Atoi(strings.TrimSuffix(number, ".img"))
		if !ok || err != nil {
			continue
		}
		if err := eachEntry(dir, name, magicIDs, ids, func() {}); err != nil {
			return nil, err
		}
		err = eachEntry(dir, fmt.Sprintf("fdinfo-%d.img", ids.GetFilesId()), magicFdinfo, entry, func() {
			all[descriptor{pid, entry.GetFd()}] = entry.GetId()
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a task that is a zombie has none
			return nil, err
		}
	}
	return all, nil
}

// imagePIDs returns the pids that the processes of a tree have in its images:
// those of the root's pid namespace (proc_pid_status(5): NSpid).
func imagePIDs(root int) (map[int]int, error) {
	pids, err := proctree.Of(root)
	if err != nil {
		return nil, err
	}
	level := -1
	inside := make(map[int]int, len(pids))
	for _, pid := range pids {
		numbers, err := proctree.Numbers(pid)
		if err != nil {
			return nil, err
		}
		if level < 0 {
			level = len(numbers) - 1
		}
		if level >= len(numbers) {
			return nil, fmt.Errorf("process %s: NSpid has %d numbers", proctree.Name(pid), len(numbers))
		}
		inside[pid] = numbers[level]
	}
	return inside, nil
}
