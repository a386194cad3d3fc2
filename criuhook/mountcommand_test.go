package criuhook

import (
	"testing"

	"spfs/internal/exit"
)

func TestParseMountCommand(t *testing.T) {
	m, err := ParseMountCommand("/mnt/a=sshfs -o a=b host: %m")
	if err != nil || m.Point != "/mnt/a" || m.Command != "sshfs -o a=b host: %m" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "/mnt", "/mnt=", "/mnt= ", "mnt=x %m", "/a/../b=x %m", "=x %m", "/mnt=mount it"} {
		if _, err := ParseMountCommand(bad); exit.Status(err) != exit.Misused {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
