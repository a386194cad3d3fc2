package test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// stormStatus is struct status of fixture/storm.c.
type stormStatus struct {
	end, rounds, records, failed, firstErrno atomic.Uint64
	firstFailed                              [64]byte
}

// Processes that are never the same for long, swapped several times: each of them
// is on the new mount after, has what it had, and sees no error.
func TestSwapOfStorms(t *testing.T) {
	t.Parallel()
	const swaps = 5
	for _, kind := range []string{"fork", "exec", "remap"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			top := rig.Dir(t)
			data, at := rig.Mkdir(t, top, "data"), rig.Mkdir(t, top, "mnt")
			rig.Write(t, data+"/data", pages(4))
			rig.Write(t, data+"/log", "")
			serving := rig.Bindfs(t, data, at)

			name := filepath.Join(top, "status")
			status := newStormStatus(t, name)
			cmd := exec.Command(rig.Build(t).Storm, kind, name)
			cmd.Dir = at
			storm := rig.Begin(t, cmd)
			t.Cleanup(func() { status.end.Store(1); rig.Kill(t, rig.Tree(storm.PID)...) })
			goesOn := func() {
				t.Helper()
				from := status.rounds.Load()
				rig.Await(t, 20*time.Second, func() bool {
					select {
					case <-storm.Ended():
						storm.Wait(t).OK(t)
						t.Fatal("it ended")
					default:
					}
					return status.rounds.Load() > from+100
				}, "the storm goes on")
			}

			began := time.Now()
			for i := range swaps {
				goesOn()
				to := rig.Mkdir(t, top, "new"+itoa(i))
				next := rig.Bindfs(t, data, to)
				rig.Run(t, rig.Build(t).Swap, "run", "--from", at, "--to", to).OK(t)
				if got, want := devAt(t, 0, at), devAt(t, 0, to); got != want {
					t.Errorf("at %s is the file system %s, want %s", at, devName(got), devName(want))
				}
				// A daemon ends when nobody has anything of its file system.
				select {
				case <-serving.Ended():
				case <-time.After(20 * time.Second):
					t.Fatal("somebody is still on the old mount")
				}
				serving = next
			}
			goesOn()
			t.Logf("%d rounds in %v", status.rounds.Load(), time.Since(began).Round(time.Millisecond))
			status.end.Store(1)
			storm.Wait(t).OK(t)

			if n := status.failed.Load(); n != 0 {
				t.Errorf("%d things were wrong, first %s: %v", n, unix.ByteSliceToString(status.firstFailed[:]),
					unix.Errno(status.firstErrno.Load()))
			}
			log, err := os.ReadFile(data + "/log")
			if err != nil {
				t.Fatal(err)
			}
			seen := map[uint64]bool{}
			for rest := log; len(rest) >= 8; rest = rest[8:] {
				seen[binary.NativeEndian.Uint64(rest)] = true
			}
			if want := status.records.Load(); uint64(len(log)) != 8*want || uint64(len(seen)) != want {
				t.Errorf("the log has %d bytes and %d records, want %d records of 8 bytes", len(log), len(seen), want)
			}
		})
	}
}

// newStormStatus makes the file and maps it until t ends.
func newStormStatus(t *testing.T, name string) *stormStatus {
	t.Helper()
	size := int(unsafe.Sizeof(stormStatus{}))
	rig.Write(t, name, string(make([]byte, size)))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return (*stormStatus)(unsafe.Pointer(&m[0]))
}
