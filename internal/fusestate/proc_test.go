package fusestate

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What /proc shows of a client is what BPF finds.
func TestProcAgrees(t *testing.T) {
	server := withFiles(t)
	file, dir := server.path("file"), server.path("dir")
	c := startClient(t, "rdwr="+file, "seek=99", "dup=", "map=5", "path="+dir, "rdonly="+dir, "chdir="+dir)
	describe := func(s *State) []string {
		var all []string
		for _, f := range s.Files {
			if f.PID == c.pid {
				all = append(all, fmt.Sprintln("fd", f.TID, f.FD, f.CloseOnExec, f.Node.Dev, f.Ino, f.Flags, f.Pos, f.Mount))
			}
		}
		for _, m := range s.Mappings {
			if m.PID == c.pid {
				all = append(all, fmt.Sprintln("map", m.Start, m.End, m.Offset, m.Node.Dev, m.Ino))
			}
		}
		for _, p := range s.Places {
			if p.PID == c.pid {
				all = append(all, fmt.Sprintln(p.Kind, p.TID, p.Node.Dev, p.Ino, p.Mount))
			}
		}
		for _, d := range s.Devices {
			if d.Dev == server.dev {
				all = append(all, fmt.Sprintln("/dev/fuse", d.PID, d.FD))
			}
		}
		slices.Sort(all)
		return all
	}
	s, err := FromProc(context.Background(), All)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Partial || s.ConnOf(server.dev) == nil {
		t.Errorf("partial: %v, connections: %+v", s.Partial, s.Conns)
	}
	proc, bpf := describe(s), describe(read(t, reader(t), All))
	if len(proc) != 4+5+1+1 || !slices.Equal(proc, bpf) {
		t.Errorf("/proc shows\n%q\nBPF finds\n%q", proc, bpf)
	}
}

func FuzzParseFDInfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02100002\nmnt_id:\t14\nino:\t12\nfuse_connection:\t41\n"))
	f.Add([]byte("pos:\t0\nflags:\t9\nmnt_id:\t14\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := parseFDInfo(text)
		if err != nil && info != (fdInfo{}) {
			t.Errorf("%v, but %+v", err, info)
		}
	})
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("7f00-8f00 r--p 00001000 00:2d 12 /mnt/x y\nffff-fffff ---p 0 00:00 0\n"))
	f.Add([]byte("-\n7f00-8f00 r--p zz 00:2d"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, m := range parseMaps(text, Task{1, 1}, map[uint64]bool{unix.Mkdev(0, 0x2d): true}) {
			if m.Node.Dev != unix.Mkdev(0, 0x2d) {
				t.Errorf("a mapping of another device: %+v", m)
			}
		}
	})
}
