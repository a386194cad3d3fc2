package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"spfs/internal/freezer"
)

// frost is the note on a cgroup that a keeper has frozen.
type frost struct {
	Keeper    int            // its pid
	Started   string         // and when it was started
	Temporary bool           // the cgroup was made by it
	Before    map[int]string `json:",omitempty"` // the cgroups of the processes before
}

// note leaves the note on the cgroup.
func (i *ice) note() error {
	f := frost{Keeper: os.Getpid(), Temporary: i.temporary, Before: make(map[int]string)}
	var err error
	if f.Started, err = startOf(f.Keeper); err != nil {
		return err
	}
	for pid, c := range i.before {
		f.Before[pid] = c.Path()
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := i.cgroup.SetNote(b); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.E2BIG) {
		return err // else [Recover] finds nothing
	}
	return nil
}

// Recovered is a tree that [Recover] let go on.
type Recovered struct {
	Cgroup    string
	Processes []int
}

// Recover lets trees go on that are frozen since everybody was killed who knew
// of them: the dump, and its keeper. Their daemons have lost their connections
// with those who held them, so that the clients' next calls fail; but none
// stays frozen.
func Recover() ([]Recovered, error) {
	h, err := freezer.Find()
	if err != nil {
		return nil, err
	}
	noted, err := h.Noted()
	if err != nil {
		return nil, err
	}
	var all []Recovered
	var errs []error
	for _, c := range noted {
		b, err := c.Note()
		var f frost
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("the note on cgroup %s: %w", c.Path(), err))
			continue
		}
		if started, err := startOf(f.Keeper); err == nil && started == f.Started && !zombie(f.Keeper) {
			continue // it is being kept
		}
		i := &ice{cgroup: c, temporary: f.Temporary, before: make(map[int]*freezer.Cgroup)}
		for pid, path := range f.Before {
			i.before[pid] = h.Open(path)
		}
		pids, err := c.Members()
		errs = append(errs, err, i.open(), i.remove())
		slices.Sort(pids)
		all = append(all, Recovered{c.Path(), pids})
	}
	return all, errors.Join(errs...)
}
