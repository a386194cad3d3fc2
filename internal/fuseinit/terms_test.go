package fuseinit

import (
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestAnswer(t *testing.T) {
	offer := Offer{Major: 7, Minor: 40, MaxReadahead: 131072, Flags: fuse.CAP_ASYNC_READ | fuse.CAP_POSIX_LOCKS | fuse.CAP_INIT_EXT | fuse.CAP_HAS_EXPIRE_ONLY}
	known := func(flags uint64) *Terms {
		return &Terms{Known: true, Major: 7, Minor: 38, Flags: flags, MaxWrite: 65536, MaxPages: 16}
	}
	for _, test := range []struct {
		terms   *Terms
		offer   Offer
		flags   uint64
		reduced uint64
		says    string
	}{
		{known(fuse.CAP_ASYNC_READ), offer, fuse.CAP_ASYNC_READ, 0, ""},
		{known(fuse.CAP_ASYNC_READ | fuse.CAP_WRITEBACK_CACHE), offer, fuse.CAP_ASYNC_READ | fuse.CAP_WRITEBACK_CACHE, fuse.CAP_WRITEBACK_CACHE, ""},
		{known(fuse.CAP_HAS_EXPIRE_ONLY), offer, fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_INIT_EXT, 0, ""},
		{known(fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT), offer, 0, 0, "dont_mask, setxattr_ext"},
		{known(1 << 60), offer, 0, 0, "bit 60"},
		{known(fuse.CAP_OVER_IO_URING), offer, 0, 0, "io_uring"},
		{known(0), Offer{Major: 8, Minor: 1}, 0, 0, "8.1"},
		{&Terms{}, offer, fuse.CAP_BIG_WRITES, 0, ""},
	} {
		out, reduced, err := test.terms.Answer(test.offer)
		if test.says != "" {
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v: error %v, want one about %s", test.terms, err, test.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", test.terms, err)
			continue
		}
		if flags := uint64(out.Flags) | uint64(out.Flags2)<<32; flags != test.flags || reduced != test.reduced || out.Major != 7 {
			t.Errorf("%+v: flags %#x, left out %#x, want %#x and %#x", test.terms, flags, reduced, test.flags, test.reduced)
		}
	}
}

func TestApply(t *testing.T) {
	terms := func() Terms {
		return Terms{Known: true, Major: 7, Minor: 38, Flags: fuse.CAP_ASYNC_READ | fuse.CAP_WRITEBACK_CACHE, MaxWrite: 65536}
	}
	for s, want := range map[string]Terms{
		"-writeback_cache":                {Known: true, Major: 7, Minor: 38, Flags: fuse.CAP_ASYNC_READ, MaxWrite: 65536},
		"posix_locks,max_write=4096":      {Known: true, Major: 7, Minor: 38, Flags: fuse.CAP_ASYNC_READ | fuse.CAP_WRITEBACK_CACHE | fuse.CAP_POSIX_LOCKS, MaxWrite: 4096},
		"flags=0x20,minor=31":             {Known: true, Major: 7, Minor: 31, Flags: fuse.CAP_BIG_WRITES, MaxWrite: 65536},
		"flags=0,posix_acl":               {Known: true, Major: 7, Minor: 38, Flags: 1 << 20, MaxWrite: 65536},
		"max_pages=256,-async_read":       {Known: true, Major: 7, Minor: 38, Flags: fuse.CAP_WRITEBACK_CACHE | fuse.CAP_MAX_PAGES, MaxWrite: 65536, MaxPages: 256},
		"time_gran=1000,max_background=9": {Known: true, Major: 7, Minor: 38, Flags: fuse.CAP_ASYNC_READ | fuse.CAP_WRITEBACK_CACHE, MaxWrite: 65536, TimeGran: 1000, MaxBackground: 9},
	} {
		c, err := ParseChange(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		got := terms()
		if got.Apply(c); got != want {
			t.Errorf("%s: %+v, want %+v", s, got, want)
		}
		if err := got.Check(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}

	// Of what nobody knows, the rest is what any daemon works with.
	c, err := ParseChange("async_read")
	if err != nil {
		t.Fatal(err)
	}
	var got Terms
	got.Apply(c)
	if !got.Known || got.Major != 7 || got.MaxWrite != PlainMaxWrite || got.Flags != fuse.CAP_BIG_WRITES|fuse.CAP_ASYNC_READ {
		t.Errorf("a change of what is not known gives %+v", got)
	}
}

func TestParseChangeRefuses(t *testing.T) {
	for s, says := range map[string]string{
		"":                       "no flag",
		"other":                  "other",
		"async_read,-async_read": "async_read",
		"max_write=x":            "number",
		"max_write=1":            "4096",
		"size=1":                 "size",
		"minor=7":                "12",
		"flags=-1":               "number",
	} {
		if _, err := ParseChange(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want an error about %q", s, err, says)
		}
	}
}

func FuzzParseChange(f *testing.F) {
	f.Add("async_read,-posix_locks,max_write=0x1000,flags=7")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseChange(s)
		if err != nil {
			return
		}
		var terms Terms
		terms.Apply(c)
		if err := terms.Check(); err != nil {
			t.Errorf("%q makes %+v: %v", s, terms, err)
		}
	})
}
