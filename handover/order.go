package handover

import (
	"fmt"
	"slices"
	"strings"
)

// stopOrder is the order in which the daemons of a tree are stopped: one that
// uses another's mount before that other, which answers it until then. They
// are let go in the reverse order.
func (c *census) stopOrder() ([]int, error) {
	uses := make(map[int][]int) // by daemon: those that it is a client of
	var daemons []int
	for _, pids := range c.served {
		for _, pid := range pids {
			if !slices.Contains(daemons, pid) {
				daemons = append(daemons, pid)
			}
		}
	}
	slices.Sort(daemons)
	for _, u := range c.users {
		if !slices.Contains(daemons, u.pid) {
			continue
		}
		for _, server := range c.served[u.conn] {
			if server == u.pid {
				return nil, fmt.Errorf("%w: %s has %s on connection %d, which it serves itself: nobody could stop the one without the other",
					ErrOwnMount, describe(u.pid), u.what, u.conn)
			}
			if !slices.Contains(uses[u.pid], server) {
				uses[u.pid] = append(uses[u.pid], server)
			}
		}
	}
	return sorted(daemons, uses)
}

// sorted puts every process before those that it uses.
func sorted(daemons []int, uses map[int][]int) ([]int, error) {
	const (
		unseen = iota
		under  // its way is being followed
		done
	)
	state := make(map[int]int)
	var order, way []int
	var follow func(pid int) error
	follow = func(pid int) error {
		switch state[pid] {
		case done:
			return nil
		case under:
			var names []string
			for _, p := range append(way[slices.Index(way, pid):], pid) {
				names = append(names, describe(p))
			}
			return fmt.Errorf("%w: %s", ErrCircle, strings.Join(names, " uses the mount of "))
		}
		state[pid] = under
		way = append(way, pid)
		for _, other := range uses[pid] {
			if err := follow(other); err != nil {
				return err
			}
		}
		way = way[:len(way)-1]
		state[pid] = done
		order = append(order, pid)
		return nil
	}
	for _, pid := range daemons {
		if err := follow(pid); err != nil {
			return nil, err
		}
	}
	slices.Reverse(order)
	return order, nil
}
