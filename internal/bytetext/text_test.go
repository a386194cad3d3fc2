package bytetext

import (
	"encoding/json"
	"testing"
)

func FuzzText(f *testing.F) {
	f.Add([]byte("a%b\xff\uFFFDé"))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := json.Marshal(Text(b))
		if err != nil {
			t.Fatal(err)
		}
		var got Text
		if err := json.Unmarshal(j, &got); err != nil || string(got) != string(b) {
			t.Errorf("%q became %s and then %q (%v)", b, j, got, err)
		}
	})
}

func TestTextThatWasNeverWrittenIsRefused(t *testing.T) {
	for _, s := range []string{"%", "%4", "%zz", "a%"} {
		var got Text
		if err := got.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q was read as %q", s, got)
		}
	}
}
