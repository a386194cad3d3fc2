package eintr

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlyEINTRIsRetried(t *testing.T) {
	for _, final := range []error{nil, unix.EAGAIN, unix.EIO} {
		calls := 0
		call := func() (int, error) {
			if calls++; calls < 3 {
				return -1, unix.EINTR
			}
			return calls, final
		}
		if n, err := Get(call); n != 3 || err != final {
			t.Errorf("Get returned %d, %v, want 3, %v", n, err, final)
		}
		calls = 0
		if err := Retry(func() error { _, err := call(); return err }); calls != 3 || err != final {
			t.Errorf("Retry returned %v after %d calls, want %v after 3", err, calls, final)
		}
	}
}
