package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"spfs/internal/exit"
	"spfs/internal/fusedev"
	"spfs/internal/fuseinit"
	"spfs/internal/mounts"
	"spfs/internal/ptrace"
	"spfs/swap"
)

// --to-fuse names a live daemon's /dev/fuse in place of a mount.
var (
	toFuseFlag = &cli.StringFlag{
		Name:  "to-fuse",
		Usage: "in place of --to: what the daemon `PID:FD` serves, FD being its /dev/fuse",
	}
	initFlag = &cli.StringFlag{
		Name:  "init",
		Usage: "of a --to-fuse that was never mounted: what its daemon has negotiated, as for \"spfs restore\"; or \"daemon\", if it has not yet, and will `FLAGS`",
	}
)

// daemonInit is the value of --init that leaves INIT to the daemon.
const daemonInit = "daemon"

// toFuse is a mount of a daemon's connection.
type toFuse struct {
	pid, fd int
	from    string
	terms   *fuseinit.Terms // nil: the daemon answers INIT

	at    *staging
	first bool // it was never mounted: with this mount the connection ends
}

// newToFuse reads the flags.
func newToFuse(c *cli.Context) (*toFuse, error) {
	t := &toFuse{from: c.String("from")}
	pid, fd, _ := strings.Cut(c.String("to-fuse"), ":")
	var errs [2]error
	t.pid, errs[0] = strconv.Atoi(pid)
	t.fd, errs[1] = strconv.Atoi(fd)
	if errors.Join(errs[:]...) != nil || t.pid <= 0 || t.fd < 0 {
		return nil, exit.Usage("run: --to-fuse %q is not PID:FD", c.String("to-fuse"))
	}
	words := c.String("init")
	if words == daemonInit {
		return t, nil
	}
	t.terms = new(fuseinit.Terms)
	if c.IsSet("init") {
		change, err := fuseinit.ParseChange(words)
		if err != nil {
			return nil, exit.Usage("run: --init: %v", err)
		}
		t.terms.Apply(change)
	}
	return t, nil
}

// mount mounts the connection in a directory of its own. The first mount of a
// connection can't be taken back, so all that can fail is done before it.
func (t *toFuse) mount(ctx context.Context) (err error) {
	device, err := t.device()
	if err != nil {
		return err
	}
	defer device.Close()
	t.first, err = fusedev.Unmounted(device)
	if err != nil {
		return err
	}
	options, err := t.options()
	if err != nil {
		return err
	}
	prefix := stagingPrefix
	if t.first {
		prefix = keptPrefix
	}
	if t.at, err = newStaging(prefix); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.end())
		}
	}()
	at, err := os.OpenFile(t.at.point(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	if !t.first || t.terms == nil {
		return attachDevice(device, options, at, func() error { return nil })
	}
	offer, err := fuseinit.KernelOffer(ctx)
	if err != nil {
		return fmt.Errorf("what this kernel offers a daemon: %w", err)
	}
	_, reduced, err := t.terms.Answer(offer)
	if err != nil {
		return exit.Refuse(fmt.Errorf("this kernel can't give the daemon what it has negotiated: %w", err))
	}
	if reduced != 0 {
		fmt.Fprintf(os.Stderr, "spfs-swap: this kernel does not offer %s, which the daemon had and does without\n", fuseinit.FlagNames(reduced))
	}
	tracer := ptrace.New()
	defer tracer.Close()
	daemon, err := tracer.Seize(ctx, t.pid)
	if err != nil {
		return fmt.Errorf("stopping the daemon, while INIT is answered in its place: %w", err)
	}
	err = attachDevice(device, options, at, func() error { return fuseinit.AnswerINIT(ctx, device, t.terms) })
	return errors.Join(err, daemon.Release())
}

// attachDevice makes a mount of a device, has INIT answered, and attaches it.
func attachDevice(device *os.File, o fusedev.Options, at *os.File, answer func() error) error {
	mount, err := fusedev.MountDevice(device, o)
	if err != nil {
		return err
	}
	defer mount.Close()
	if err := answer(); err != nil {
		return fmt.Errorf("answering INIT in the daemon's place: %w", err)
	}
	return mount.Attach(at)
}

// end takes the mount away from where it was staged; unless it was the first one
// of the connection and is still there, since the swap failed: then it is left.
func (t *toFuse) end() error {
	if t.first {
		if _, err := mounts.Lookup(t.at.point()); !errors.Is(err, mounts.ErrNotMounted) {
			t.at.lock.Close()
			return fmt.Errorf("what process %d serves is mounted at %[2]s now, and stays, since its connection would end with it: run this again with --to %[2]s --move", t.pid, t.at.point())
		}
	}
	return t.at.end()
}

// device copies the daemon's /dev/fuse.
func (t *toFuse) device() (*os.File, error) {
	pidfd, err := unix.PidfdOpen(t.pid, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a pidfd of process %d: %w", t.pid, err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, t.fd, 0)
	if err != nil {
		return nil, fmt.Errorf("taking descriptor %d of process %d: pidfd_getfd: %w", t.fd, t.pid, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != fuseRdev) {
		err = errors.New("it is no /dev/fuse")
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d of process %d: %w", t.fd, t.pid, err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// fuseRdev is /dev/fuse (include/linux/miscdevice.h FUSE_MINOR).
var fuseRdev = unix.Mkdev(10, 229)

// options are those of the mount that is to stand in --from's place, but for the
// name, which is the daemon's. A connection that has a superblock keeps its own.
func (t *toFuse) options() (o fusedev.Options, err error) {
	at, err := swap.NewEndpoint(t.from)
	if err != nil {
		return o, fmt.Errorf("--from %w", err)
	}
	has := func(name string) bool {
		_, ok := at.Mount.SuperOption(name)
		return ok
	}
	number := func(name string) uint32 {
		v, _ := at.Mount.SuperOption(name)
		n, _ := strconv.ParseUint(v, 10, 32) // what is not there is 0
		return uint32(n)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", t.pid))
	if err != nil {
		return o, fmt.Errorf("what process %d is called: %w", t.pid, err)
	}
	o = fusedev.Options{
		Source: strings.TrimSuffix(string(name), "\n"), RootMode: unix.S_IFDIR,
		UserID: number("user_id"), GroupID: number("group_id"), MaxRead: number("max_read"),
		AllowOther: has("allow_other"), DefaultPermissions: has("default_permissions"),
	}
	if _, sub, ok := strings.Cut(at.Mount.FSType, "."); ok && sub != "spfs" {
		o.Subtype = sub
	}
	for _, flag := range []string{"ro", "sync", "dirsync", "lazytime"} {
		if has(flag) {
			o.Flags = append(o.Flags, flag)
		}
	}
	return o, nil
}

// keptPrefix is of directories that outlive their owner: see end.
const keptPrefix = "fuse-"

// sweepKept removes those that nothing is mounted in any more.
func sweepKept() {
	left, _ := filepath.Glob(filepath.Join(runDirectory, keptPrefix+"*"))
	for _, path := range left {
		s, err := openStaging(path)
		if err != nil {
			continue
		}
		if _, err := mounts.Lookup(s.point()); errors.Is(err, mounts.ErrNotMounted) {
			_ = s.end() // as in sweepStaging
		} else {
			s.lock.Close()
		}
	}
}
