package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spfs/internal/control"
	"spfs/internal/exit"
	"spfs/internal/privilege"
)

// SetMode makes the mount at path a proxy of dir, or a stub if dir is empty.
// A timeout of 0 is none.
func SetMode(ctx context.Context, path, dir string, timeout time.Duration) error {
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	c, err := control.DialMount(path)
	if err != nil {
		return err
	}
	defer c.Close()
	if dir == "" {
		err = c.Stub(ctx)
	} else {
		err = proxy(ctx, c, dir)
	}
	if errors.Is(err, control.ErrRefused) {
		err = exit.Refuse(err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func proxy(ctx context.Context, c *control.Client, path string) error {
	dir, err := OpenDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return c.Proxy(ctx, dir)
}
