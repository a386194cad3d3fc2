package devfuse

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		fdinfo  string
		want    Description
		cloexec bool
		ok      bool
	}{
		{"pos:\t0\nflags:\t02000002\nmnt_id:\t9\nfuse_connection:\t43\n", Description{Connection: 43, Flags: unix.O_RDWR}, true, true},
		{"pos:\t0\nflags:\t04002\nfuse_connection:\t7\n", Description{Connection: 7, Flags: unix.O_RDWR | unix.O_NONBLOCK}, false, true},
		{fdinfo: "pos:\t0\nflags:\t02\n"}, // not mounted
		{fdinfo: "flags:\t02\nfuse_connection:\tx\n"},
		{fdinfo: "flags:\t9\nfuse_connection:\t1\n"},
		{fdinfo: ""},
	} {
		d, ok := parse(c.fdinfo)
		if ok != c.ok {
			t.Errorf("%q: %v, want %v", c.fdinfo, ok, c.ok)
			continue
		}
		if ok && (d.Connection != c.want.Connection || d.Flags != c.want.Flags || d.Holders[0].CloseOnExec != c.cloexec) {
			t.Errorf("%q: connection %d, flags %#o, close-on-exec %v", c.fdinfo, d.Connection, d.Flags, d.Holders[0].CloseOnExec)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("pos:\t0\nflags:\t02000002\nfuse_connection:\t43\n")
	f.Fuzz(func(t *testing.T, text string) {
		if d, ok := parse(text); ok && len(d.Holders) != 1 {
			t.Errorf("%q: %d holders", text, len(d.Holders))
		}
	})
}
