package criuhook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/handover"
	"spfs/internal/control"
	"spfs/internal/exit"
	"spfs/internal/fuseinit"
)

// adopted is a file system whose daemon is in the images: a new connection,
// mounted in the workspace.
type adopted struct {
	*handover.Adopted
	fs   *FileSystem
	path string
}

// adopt makes the connection of each file system whose daemon is in the
// images.
func (r *restore) adopt(ctx context.Context) error {
	for i := range r.manifest.FileSystems {
		fs := &r.manifest.FileSystems[i]
		if fs.Record == nil {
			continue
		}
		one, err := handover.Adopt(ctx, fs.Record, handover.AdoptOptions{})
		if err != nil {
			err = fmt.Errorf("a connection for the daemon of %s: %w", fs.Mounts[0].Point, err)
			if errors.Is(err, handover.ErrKernel) || errors.Is(err, handover.ErrBadRecord) {
				return exit.Refuse(err)
			}
			return err
		}
		if flags := one.Reduced(); flags != 0 {
			r.o.Event(fmt.Sprintf("%s: this kernel does not offer %s, which its daemon had and does without",
				fs.Mounts[0].Point, fuseinit.FlagNames(flags)))
		}
		a := &adopted{Adopted: one, fs: fs}
		r.adopted = append(r.adopted, a)
		if err := a.attach(r.workspace, i); err != nil {
			return fmt.Errorf("the connection for the daemon of %s: %w", fs.Mounts[0].Point, err)
		}
		if r.manifest.HostNamespace && r.stubOf[fs] == nil {
			if err := r.bindAt(fs, a.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// attach mounts the connection in the workspace.
func (a *adopted) attach(w *workspace, n int) (err error) {
	if a.fs.Record.Options.RootMode == unix.S_IFDIR {
		a.path, err = w.mkdir("connection", n)
	} else {
		a.path, err = w.mkfile("connection", n)
	}
	if err != nil {
		return err
	}
	at, err := os.OpenFile(a.path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	return a.Attach(at)
}

// inheritance holds the descriptors that CRIU is started with.
type inheritance []int

func (i inheritance) close() {
	for _, fd := range i {
		unix.Close(fd)
	}
}

// inherit opens what CRIU must be started with for the adopted connections,
// under numbers that stay open in an exec, and puts them into the request.
func (r *restore) inherit(request *rpc.CriuOpts) (inheritance, error) {
	var all inheritance
	add := func(f *os.File, key string) error {
		fd, err := inheritable(f)
		if err != nil {
			return fmt.Errorf("a copy of %s for CRIU: %w", key, err)
		}
		all = append(all, fd)
		request.InheritFd = append(request.InheritFd, &rpc.InheritFd{Key: proto.String(key), Fd: proto.Int32(int32(fd))})
		return nil
	}
	for _, a := range r.adopted {
		devices := a.Devices()
		for i, d := range a.fs.Record.Devices {
			if err := add(devices[i], asItIs(d.Key)); err != nil {
				all.close()
				return nil, err
			}
		}
	}
	return all, nil
}

// asItIs makes of the key of an external file the one by which CRIU takes a
// descriptor as it is, and does not open it again through /proc: a device that
// is opened again is another one. CRIU looks for the file's name before it
// looks for the key, and cuts the first byte off every name, where it expects
// the slash (criu/files-reg.c: open_path, collect_one_regfile).
func asItIs(key string) string { return key[1:] }

// inheritable duplicates a descriptor to one that stays open in an exec. It
// changes nothing of the description, as os.File.Fd would.
func inheritable(f *os.File) (int, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup := -1
	var errno error
	err = c.Control(func(fd uintptr) { dup, errno = unix.FcntlInt(fd, unix.F_DUPFD, 3) })
	return dup, errors.Join(err, errno)
}

// handOver gives the connections to the daemons, which do not run yet.
func (r *restore) handOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	for _, a := range r.adopted {
		if err := a.HandOver(ctx); err != nil {
			return fmt.Errorf("giving the connection of %s to its daemon: %w", a.fs.Mounts[0].Point, err)
		}
		if s := r.stubOf[a.fs]; s != nil {
			if err := s.takeUnlinked(ctx, a); err != nil {
				return fmt.Errorf("giving the unlinked files of %s to its stub: %w", a.fs.Mounts[0].Point, err)
			}
		}
	}
	return nil
}

// takeUnlinked puts the daemon's files in the place of those without a name that
// are open on the stub. Nothing else leads to them, and whoever waits for one in
// the stub, or looks for it there to bring it along, must find it.
func (s *stub) takeUnlinked(ctx context.Context, a *adopted) error {
	paths := unlinkedPaths(a.fs)
	for _, u := range a.Unlinked() {
		for _, p := range paths[u.Node] {
			err := s.ask(func(c *control.Client) error {
				return c.Deleted(ctx, strings.TrimPrefix(p, "/"), u.File, u.Open)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// finishAdopted ends what this process has to do with the connections, when the
// daemons run, and swaps those onto them who were restored on a stub.
func (r *restore) finishAdopted(ctx context.Context) error {
	all := r.adopted
	errs := []error{r.closeAdopted()}
	for _, a := range all {
		s := r.stubOf[a.fs]
		if s == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
		err := r.o.Swap(ctx, s.path, a.path)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("swapping %s: %w", a.fs.Mounts[0].Point, err))
			continue
		}
		r.swapped[s] = true
		r.o.Event(fmt.Sprintf("%s is swapped", a.fs.Mounts[0].Point))
	}
	return errors.Join(errs...)
}

// adoptedErr is what the stand-ins of the connections could not answer.
func (r *restore) adoptedErr() error {
	var errs []error
	for _, a := range r.adopted {
		if err := a.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.fs.Mounts[0].Point, err))
		}
	}
	return errors.Join(errs...)
}

// closeAdopted ends what this process has to do with the connections.
func (r *restore) closeAdopted() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.o.Timeout)
	defer cancel()
	var errs []error
	for _, a := range r.adopted {
		if err := a.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.fs.Mounts[0].Point, err))
		}
	}
	r.adopted = nil
	return errors.Join(errs...)
}
