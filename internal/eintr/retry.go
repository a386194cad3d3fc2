package eintr

import "golang.org/x/sys/unix"

// Retry calls until the error is another than EINTR, and returns that.
func Retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// Get is Retry for calls that return something.
func Get[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); err != unix.EINTR {
			return v, err
		}
	}
}
