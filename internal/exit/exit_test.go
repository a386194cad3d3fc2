package exit

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestStatusIsFoundThroughWrapping(t *testing.T) {
	plain := errors.New("x")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, Done},
		{plain, Failed},
		{Usage("no %s", "y"), Misused},
		{Refuse(plain), Refused},
		{Refuse(nil), Done},
		{fmt.Errorf("around: %w", Refuse(plain)), Refused},
		{errors.Join(plain, Usage("z")), Misused},
	} {
		if got := Status(c.err); got != c.want {
			t.Errorf("Status(%v) = %d, want %d", c.err, got, c.want)
		}
	}
	if !errors.Is(Refuse(plain), plain) {
		t.Error("Refuse hides the error it wraps")
	}
}

func TestReportIsOneLineNamingTheProgram(t *testing.T) {
	var b strings.Builder
	if got := Report(&b, "spfs", Usage("no such flag")); got != Misused {
		t.Errorf("status %d, want %d", got, Misused)
	}
	if b.String() != "spfs: no such flag\n" {
		t.Errorf("printed %q", b.String())
	}
	b.Reset()
	if got := Report(&b, "spfs", nil); got != Done || b.Len() != 0 {
		t.Errorf("nil error: status %d, printed %q", got, b.String())
	}
}
