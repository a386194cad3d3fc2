package criuhook

import "testing"

func TestParseInitChange(t *testing.T) {
	for s, point := range map[string]string{
		"async_read":              "",
		"/mnt:-writeback_cache":   "/mnt",
		"/a:b:minor=31,flags=0x1": "/a:b",
	} {
		if c, err := ParseInitChange(s); err != nil || c.Point != point || c.Change == nil {
			t.Errorf("%s: %+v, %v", s, c, err)
		}
	}
	for _, s := range []string{"", "/mnt", "/mnt:", "/mnt:x", "mnt:async_read"} {
		if c, err := ParseInitChange(s); err == nil {
			t.Errorf("%q is taken for %+v", s, c)
		}
	}
}
