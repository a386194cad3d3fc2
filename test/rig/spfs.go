package rig

import (
	"fmt"
	"slices"
	"time"
)

// Status is what spfs status --json says of a mount.
type Status struct {
	Mode       string    `json:"mode"`
	Dir        string    `json:"dir"`
	Mountpoint string    `json:"mountpoint"`
	Device     string    `json:"device"`
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	Held       []Held    `json:"held"`
}

// Held is a request that waits.
type Held struct {
	Op    string    `json:"op"`
	Path  string    `json:"path"`
	PID   int       `json:"pid"`
	TID   int       `json:"tid"`
	Comm  string    `json:"comm"`
	Since time.Time `json:"since"`
}

func (s Status) String() string {
	return fmt.Sprintf("%s at %s, served by %d, %d requests held", s.Mode, s.Mountpoint, s.PID, len(s.Held))
}

// SPFS runs a spfs command.
func SPFS(t T, args ...string) Result {
	t.Helper()
	return Run(t, Build(t).SPFS, args...)
}

// Mount mounts SPFS with spfs mount. When t ends, it is unmounted by force, if
// it is there still.
func Mount(t T, mountpoint string, flags ...string) Status {
	t.Helper()
	SPFS(t, append(append([]string{"mount"}, flags...), mountpoint)...).OK(t)
	s := StatusOf(t, mountpoint)
	t.Cleanup(func() {
		// What a swap has put in its place is detached only.
		if m := MountAt(t, 0, mountpoint); m != nil && fmt.Sprintf("%d:%d", m.Major, m.Minor) == s.Device {
			SPFS(t, "umount", "--force", mountpoint).OK(t)
		} else if m != nil {
			Unmount(t, mountpoint)
		}
	})
	return s
}

// StatusOf is the status of one mount.
func StatusOf(t T, mountpoint string) Status {
	t.Helper()
	all := Statuses(t, mountpoint)
	if len(all) != 1 {
		t.Fatalf("spfs status %s tells of %d mounts", mountpoint, len(all))
	}
	return all[0]
}

// Statuses is what spfs status --json prints with these arguments.
func Statuses(t T, args ...string) (all []Status) {
	t.Helper()
	SPFS(t, append([]string{"status", "--json"}, args...)...).OK(t).JSON(t, &all)
	return all
}

// AwaitHeld waits until n processes or threads wait at mountpoint, and returns
// their requests. The kernel's own, such as RELEASE, have no process.
func AwaitHeld(t T, mountpoint string, n int) []Held {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		held := slices.DeleteFunc(StatusOf(t, mountpoint).Held, func(h Held) bool { return h.PID == 0 })
		if len(held) == n {
			return held
		}
		if time.Now().After(end) {
			t.Fatalf("after %v, %d requests of processes are held at %s, want %d: %+v", patience, len(held), mountpoint, n, held)
		}
	}
}
