package control

import (
	"context"
	"errors"
	"fmt"
)

// DialMount connects to the daemon of the mount at path.
func DialMount(path string) (*Client, error) {
	dev, err := MountDevice(path)
	if err != nil {
		return nil, err
	}
	c, err := Dial(dev)
	if errors.Is(err, ErrNotServed) {
		return nil, fmt.Errorf("%s is %w", path, ErrNotServed)
	}
	return c, err
}

// StatusOf asks the daemon of the mount at path, or all daemons if path is
// empty: one that ends meanwhile is left out.
func StatusOf(ctx context.Context, path string) ([]*Status, error) {
	if path != "" {
		c, err := DialMount(path)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		s, err := c.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return []*Status{s}, nil
	}
	devs, err := List()
	if err != nil {
		return nil, err
	}
	all := []*Status{} // never null in JSON
	for _, dev := range devs {
		s, err := statusOf(ctx, dev)
		if errors.Is(err, ErrNotServed) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func statusOf(ctx context.Context, dev uint64) (*Status, error) {
	c, err := Dial(dev)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Status(ctx)
}
