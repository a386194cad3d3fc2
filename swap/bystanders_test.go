package swap

import (
	"slices"
	"testing"
)

func TestCallPointers(t *testing.T) {
	for text, want := range map[string][]uint64{
		"running\n":             nil,
		"-1 0x7ffe0 0x4209da\n": nil,
		"4 0x7f1c8a47c058 0x7f1c8a47c068 0x0 0x0 0x0 0x0 0x7ffc87358060 0x40182e\n":          {0x7f1c8a47c058, 0x7f1c8a47c068},
		"262 0xffffff9c 0x7f0000001000 0x7f0000002000 0x100 0x0 0x0 0x7ffc87358060 0x4018\n": {0xffffff9c, 0x7f0000001000, 0x7f0000002000},
		"1 0xffffffffffffffff 0xx 0 0 0 0 0 0":                                               nil,
	} {
		if got := callPointers([]byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: %x, want %x", text, got, want)
		}
	}
}

func FuzzCallPointers(f *testing.F) {
	f.Add("4 0x7f1c8a47c058 0x7f1c8a47c068 0x0 0x0 0x0 0x0 0x7ffc87358060 0x40182e")
	f.Fuzz(func(t *testing.T, text string) {
		for _, at := range callPointers([]byte(text)) {
			if int64(at) <= 0 {
				t.Errorf("%q: %x", text, at)
			}
		}
	})
}
