package swap

import (
	"encoding/binary"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
)

func TestParseFDInfo(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want fdInfo
	}{
		"file": {"pos:\t42\nflags:\t02102001\nmnt_id:\t31\nino:\t7\n",
			fdInfo{pos: 42, flags: 0o2102001, mount: 31, ino: 7}},
		"without ino, locked": {"pos:\t0\nflags:\t02\nmnt_id:\t31\nlock:\t1: FLOCK  ADVISORY  WRITE 123 00:2d:5 0 EOF\nlock:\t2: POSIX  ADVISORY  READ 123 00:2d:5 0 9\n",
			fdInfo{flags: 2, mount: 31, locks: []string{"FLOCK ADVISORY WRITE 123 00:2d:5 0 EOF", "POSIX ADVISORY READ 123 00:2d:5 0 9"}}},
		"epoll": {"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1\ntfd:        5 events:       19 data:                5  pos:0 ino:7 sdev:2d\n",
			fdInfo{flags: 2, mount: 15, ino: 1, watches: []watch{{kind: "epoll", sdev: 0x2d, hasDev: true, fd: 5, events: 0x19, data: 5}}}},
		"inotify": {"pos:\t0\nflags:\t02\nmnt_id:\t15\ninotify wd:1a ino:2 sdev:2d mask:100 ignored_mask:0 fhandle-bytes:2 fhandle-type:81 f_handle:00ff\n",
			fdInfo{flags: 2, mount: 15, watches: []watch{{
				kind: "inotify", sdev: 0x2d, hasDev: true, wd: 26, mask: 0x100, handle: mounts.Handle{Type: 0x81, Bytes: "\x00\xff"},
			}}}},
		"fanotify": {"pos:\t0\nflags:\t02\nmnt_id:\t15\nfanotify flags:0 event-flags:0\nfanotify mnt_id:1f mflags:0 mask:8 ignored_mask:0\nfanotify sdev:2d mflags:0\n",
			fdInfo{flags: 2, mount: 15, watches: []watch{{kind: "fanotify", mount: 31, mask: 8}, {kind: "fanotify", sdev: 0x2d, hasDev: true}}}},
		"io_uring": {"pos:\t0\nflags:\t02\nmnt_id:\t15\nSqMask:\t0x7\nUserFiles:\t2\n    0: /mnt/a\\040b\n    1: <none>\nUserBufs:\t0\n",
			fdInfo{flags: 2, mount: 15, uring: true, files: []string{"/mnt/a b"}}},
		"socket":    {"pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t77\nscm_fds: 3\n", fdInfo{flags: 2, mount: 9, ino: 77, unixSock: true, scmFDs: 3}},
		"/dev/fuse": {"pos:\t0\nflags:\t02\nmnt_id:\t9\nfuse_connection:\t45\n", fdInfo{flags: 2, mount: 9, fuse: 45}},
	} {
		got, err := parseFDInfo([]byte(c.text))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v (%v), want %+v", name, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "pos:\t0\n", "pos:\tx\nflags:\t0\nmnt_id:\t1\n", "pos:\t0\nflags:\t9\nmnt_id:\t1\n"} {
		if _, err := parseFDInfo([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func FuzzParseFDInfo(f *testing.F) {
	f.Add("pos:\t42\nflags:\t02102001\nmnt_id:\t31\nino:\t7\nlock:\t1: FLOCK\n")
	f.Add("pos:\t0\nflags:\t02\nmnt_id:\t15\ntfd: 5 events: 19 data: 5 pos:0 ino:7 sdev:2d\ninotify wd:1 sdev:2d\n")
	f.Add("pos:\t0\nflags:\t02\nmnt_id:\t15\nUserFiles:\t2\n    0: /a\\040b\n    1: <none>\nscm_fds: 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		info, err := parseFDInfo([]byte(text))
		if err == nil && strings.Count(text, "\n")+1 < len(info.files)+len(info.watches)+len(info.locks) {
			t.Errorf("more found in %q than it has lines", text)
		}
	})
}

const smapsText = `00400000-00401000 r-xp 00001000 00:2d 7                          /mnt/a b (deleted)
Size:                  4 kB
VmFlags: rd ex mr mw me lo hg 
7f0000000000-7f0000002000 rw-s 00000000 00:2d 8                          /mnt/c
Shared_Dirty:          4 kB
Private_Dirty:         4 kB
VmFlags: rd wr sh mr mw me ms sd 
ProtectionKey:         3
7f0000002000-7f0000003000 rw-p 00000000 08:01 8                          /x
VmFlags: rd wr mr mw me ac lo 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex 
`

func TestParseSmaps(t *testing.T) {
	got, err := parseSmaps([]byte(smapsText), unix.Mkdev(0, 0x2d))
	want := []mapLine{
		{0x400000, 0x401000, 0x1000, unix.PROT_READ | unix.PROT_EXEC, false, 7, []string{"rd", "ex", "mr", "mw", "me", "lo", "hg"}, 0, 0},
		{0x7f0000000000, 0x7f0000002000, 0, unix.PROT_READ | unix.PROT_WRITE, true, 8, []string{"rd", "wr", "sh", "mr", "mw", "me", "ms", "sd"}, 3, 8 << 10},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v (%v), want %+v", got, err, want)
	}
	var state mappingState
	if odd := got[0].oddFlags(&state); len(odd) != 0 || !state.locked || !slices.Equal(state.advice, []int{unix.MADV_HUGEPAGE}) {
		t.Errorf("odd flags %q, state %+v", odd, state)
	}
	state = mappingState{}
	if odd := got[1].oddFlags(&state); len(odd) != 1 || !strings.Contains(odd[0], "key 3") || !got[1].mayWrite() || !reflect.DeepEqual(state, mappingState{}) {
		t.Errorf("odd flags %q, state %+v of a mapping with a key, may be written to: %v", odd, state, got[1].mayWrite())
	}
	if odd := (&mapLine{vmFlags: []string{"zz"}}).oddFlags(&state); len(odd) != 1 {
		t.Error("an unknown flag is not odd")
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add(smapsText)
	f.Add("1-2 ---p 0 00:2d 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		dev := unix.Mkdev(0, 0x2d)
		lines, err := parseSmaps([]byte(text), dev)
		if err == nil {
			for i := range lines {
				lines[i].oddFlags(new(mappingState))
				if lines[i].start >= lines[i].end {
					t.Errorf("an empty mapping: %+v", lines[i])
				}
			}
		}
		parseMaps([]byte(text), dev)
	})
}

func TestParseStat(t *testing.T) {
	const rest = " S 12 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9999 1 2 18446744073709551615 1 2 140000000000000 0 0"
	for comm, text := range map[string]string{
		"cat":      "7 (cat)" + rest,
		"a) (b c":  "7 (a) (b c)" + rest,
		"new\nl)n": "7 (new\nl)n)" + rest,
	} {
		s, err := parseStat([]byte(text))
		if err != nil || s.comm != comm || s.state != 'S' || s.ppid != 12 || s.start != 9999 || s.kernel() || s.compat() || s.gone() {
			t.Errorf("%q: %+v (%v)", text, s, err)
		}
	}
	for _, bad := range []string{"", "7 (x", "7 (x) S", "7 )x( S 1"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("7 (a) (b c) S 12 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9999 1 2 3 1 2 1400 0 0")
	f.Fuzz(func(t *testing.T, text string) { parseStat([]byte(text)) })
}

func FuzzParseStatus(f *testing.F) {
	f.Add("Name:\tx\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n")
	f.Fuzz(func(t *testing.T, text string) {
		_, cred, err := parseStatus([]byte(text))
		if err == nil && !strings.Contains(text, "Uid") {
			t.Errorf("credentials %+v out of %q", cred, text)
		}
	})
}

func TestParseStatus(t *testing.T) {
	tracer, cred, err := parseStatus([]byte("Name:\tx\nTracerPid:\t77\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n"))
	if err != nil || tracer != 77 || cred.uid != 4 || cred.gid != 8 || !reflect.DeepEqual(cred.groups, []int{9, 10}) {
		t.Errorf("tracer %d, credentials %+v (%v)", tracer, cred, err)
	}
	if _, _, err := parseStatus([]byte("TracerPid:\t77\n")); err == nil {
		t.Error("a status without credentials was understood")
	}
}

// diagMessage is one message of a sock_diag dump, with an attribute.
func diagMessage(kind uint16, ino, dev uint32) []byte {
	const length = unix.NLMSG_HDRLEN + unixDiagMsgLen + unix.SizeofNlAttr + 8
	m := make([]byte, length)
	binary.NativeEndian.PutUint32(m, length)
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint32(m[unix.NLMSG_HDRLEN+4:], ino)
	attr := m[unix.NLMSG_HDRLEN+unixDiagMsgLen:]
	binary.NativeEndian.PutUint16(attr, unix.SizeofNlAttr+8)
	binary.NativeEndian.PutUint16(attr[2:], unixDiagVFS)
	binary.NativeEndian.PutUint32(attr[8:], dev)
	return m
}

func TestParseDiag(t *testing.T) {
	data := append(diagMessage(sockDiagByFamily, 5, 0x2d), diagMessage(sockDiagByFamily, 6, 0x2e)...)
	more, inodes, err := parseDiag(data, 0x2d)
	if err != nil || !more || !reflect.DeepEqual(inodes, []uint64{5}) {
		t.Errorf("more %v, inodes %v (%v), want only 5 and more", more, inodes, err)
	}
	for kind, found := range map[byte]bool{unix.SOCK_STREAM: false, unix.SOCK_SEQPACKET: false, unix.SOCK_DGRAM: true} {
		m := diagMessage(sockDiagByFamily, 5, 0x2d)
		m[unix.NLMSG_HDRLEN+1], m[unix.NLMSG_HDRLEN+2] = kind, 1 // connected
		if _, inodes, err := parseDiag(m, 0x2d); err != nil || len(inodes) == 1 != found {
			t.Errorf("connected, of type %d: %v (%v)", kind, inodes, err)
		}
	}
	if more, _, err = parseDiag(diagMessage(unix.NLMSG_DONE, 0, 0), 0x2d); more || err != nil {
		t.Errorf("at the end: more %v (%v)", more, err)
	}
	if _, _, err = parseDiag(data[:len(data)-1], 0x2d); err == nil {
		t.Error("a message cut short was understood")
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagMessage(sockDiagByFamily, 5, 0x2d))
	f.Add(diagMessage(unix.NLMSG_ERROR, 5, 0x2d))
	f.Fuzz(func(t *testing.T, data []byte) { parseDiag(data, 0x2d) })
}

func FuzzParseEntries(f *testing.F) {
	entry := make([]byte, 24)
	binary.NativeEndian.PutUint64(entry[8:], 3)
	binary.NativeEndian.PutUint16(entry[16:], 24)
	copy(entry[19:], "a")
	f.Add(entry)
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseEntries(data)
		for _, e := range entries {
			if err == nil && strings.Contains(e.name, "\x00") {
				t.Errorf("name %q", e.name)
			}
		}
	})
}

func TestParseSwaps(t *testing.T) {
	text := "Filename\t\t\t\tType\t\tSize\n/dev/sda2                               partition\t1\n/mnt/swap\\040file                       file\t\t2\n"
	if got := parseSwaps(text); !reflect.DeepEqual(got, []string{"/mnt/swap file"}) {
		t.Errorf("got %q", got)
	}
}

func FuzzParseSwaps(f *testing.F) {
	f.Add("Filename Type\n/a\\040b file 1\n")
	f.Fuzz(func(t *testing.T, text string) { parseSwaps(text) })
}

func TestRelative(t *testing.T) {
	for _, c := range []struct {
		path, dir, want string
		ok              bool
	}{
		{"/a/b", "/a", "/b", true}, {"/a", "/a", "", true}, {"/ab", "/a", "", false},
		{"/", "/", "", true}, {"/a", "/", "/a", true}, {"pipe:[1]", "/", "", false}, {"/b", "/a", "", false},
	} {
		if got, ok := relative(c.path, c.dir); ok != c.ok || ok && got != c.want {
			t.Errorf("%s in %s: %q %v, want %q %v", c.path, c.dir, got, ok, c.want, c.ok)
		}
	}
}
