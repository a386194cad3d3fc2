package swap

import (
	"context"
	"fmt"
)

// within does something that may hang in a file system, and waits for it only until
// ctx ends. It goes on then, if it still can.
func within(ctx context.Context, what string, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: its daemon does not answer: %w", what, ctx.Err())
	}
}
