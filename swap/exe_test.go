package swap

import (
	"strings"
	"testing"
)

func TestParseMemoryMap(t *testing.T) {
	var fields []string
	for n := 3; n <= 52; n++ {
		fields = append(fields, strings.Repeat("7", n-2)[:min(n-2, 15)])
	}
	for n, v := range map[int]string{26: "100", 27: "200", 28: "700", 45: "300", 46: "400", 47: "500", 48: "800", 49: "900", 50: "1000", 51: "1100"} {
		fields[n-3] = v
	}
	text := "7 (a) b) " + strings.Join(fields, " ")
	got, err := parseMemoryMap(text)
	want := [len(memoryMapFields)]uint64{100, 200, 300, 400, 500, 0, 700, 800, 900, 1000, 1100}
	if err != nil || got != want {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S 1", strings.Replace(text, " 1100", " -1", 1)} {
		if _, err := parseMemoryMap(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestParseMayRestore(t *testing.T) {
	for text, want := range map[string]bool{
		"CapEff:\t0000000000200000\n": true, // CAP_SYS_ADMIN
		"CapEff:\t0000010000000000\n": true, // CAP_CHECKPOINT_RESTORE
		"CapEff:\t000001feffdfffff\n": true,
		"CapEff:\t000000ffffdfffff\n": false,
		"CapEff:\t0000000000000000\n": false,
	} {
		if got, err := parseMayRestore("Name:\tx\n" + text); err != nil || got != want {
			t.Errorf("%q: %v (%v), want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "CapEff:\t\n", "CapEff:\tx\n"} {
		if _, err := parseMayRestore(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseMemoryMap(f *testing.F) {
	f.Add("7 (a) b) S " + strings.Repeat("1 ", 50))
	f.Add(statusLocked)
	f.Fuzz(func(_ *testing.T, text string) {
		parseMemoryMap(text)
		parseMayRestore(text)
	})
}
