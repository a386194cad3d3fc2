package criuhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/control"
)

// stub is an spfs mount that stands for one FUSE file system. Its daemon is a
// process of its own, which ends when the last mount of it is gone.
type stub struct {
	fs   *FileSystem
	path string // where it is mounted
	dev  uint64
}

// gateTimeout bounds how long a gate may take to shut, which waits for
// requests that are being answered out of memory.
const gateTimeout = 30 * time.Second

// startStub mounts a placeholder of fs at path. program is the spfs to run.
func startStub(ctx context.Context, program, path string, fs *FileSystem) (*stub, error) {
	placeholder, err := newPlaceholder(fs)
	if err != nil {
		return nil, err
	}
	defer placeholder.Close()

	args := []string{"mount", "--mode", "stub"}
	if at := fs.positions(); at != nil {
		file, err := writePositions(filepath.Dir(path), at)
		if err != nil {
			return nil, err
		}
		defer os.Remove(file)
		args = append(args, "--positions", file)
	}
	cmd := exec.CommandContext(ctx, program, append(args, path)...)
	var said bytes.Buffer
	// The daemon keeps no descriptor of its starter's, so this pipe ends.
	cmd.Stderr = &said
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("stub of %s: %s mount: %w: %s", fs.Mounts[0].Point, program, err, bytes.TrimSpace(said.Bytes()))
	}
	s, err := stubAt(path, fs)
	if err != nil {
		return nil, fmt.Errorf("stub of %s: %w", fs.Mounts[0].Point, err)
	}
	if err := s.ask(func(c *control.Client) error { return c.Proxy(ctx, placeholder) }); err != nil {
		return nil, errors.Join(fmt.Errorf("stub of %s: %w", fs.Mounts[0].Point, err), s.stop())
	}
	return s, nil
}

// stubAt finds the stub mounted at path.
func stubAt(path string, fs *FileSystem) (*stub, error) {
	dev, err := control.MountDevice(path)
	if err != nil {
		return nil, err
	}
	return &stub{fs: fs, path: path, dev: dev}, nil
}

// writePositions writes what [ReadPositions] reads.
func writePositions(dir string, at map[string]map[uint64]string) (string, error) {
	out := make(map[Text]map[uint64]Text, len(at))
	for d, entries := range at {
		m := make(map[uint64]Text, len(entries))
		for cookie, name := range entries {
			m[cookie] = Text(name)
		}
		out[Text(d)] = m
	}
	b, err := json.Marshal(out)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "positions-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// ReadPositions reads the file that a restore gives to "spfs mount
// --positions": directory positions in the form that proxyfs takes them.
func ReadPositions(path string) (map[string]map[uint64]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var in map[Text]map[uint64]Text
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	at := make(map[string]map[uint64]string, len(in))
	for d, entries := range in {
		m := make(map[uint64]string, len(entries))
		for cookie, name := range entries {
			m[cookie] = string(name)
		}
		at[string(d)] = m
	}
	return at, nil
}

// ask runs one question to the stub's daemon.
func (s *stub) ask(question func(*control.Client) error) error {
	c, err := control.Dial(s.dev)
	if err != nil {
		return err
	}
	defer c.Close()
	return question(c)
}

// shut shuts the gate: from then on whoever touches the mount waits, and no
// page of the placeholder is left in the page cache.
func (s *stub) shut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	if err := s.ask(func(c *control.Client) error { return c.Stub(ctx) }); err != nil {
		return fmt.Errorf("shutting the gate of %s: %w", s.fs.Mounts[0].Point, err)
	}
	return nil
}

// stop takes the stub away, whoever waits on it.
func (s *stub) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), gateTimeout)
	defer cancel()
	err := s.ask(func(c *control.Client) error { return c.ForceShutdown(ctx) })
	if errors.Is(err, control.ErrNotServed) {
		err = nil
	}
	// Should the daemon not have done it.
	if e := unix.Unmount(s.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && e != unix.EINVAL && e != unix.ENOENT {
		err = errors.Join(err, fmt.Errorf("unmounting %s: %w", s.path, e))
	}
	return err
}
