package criuhook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/internal/exit"
	"spfs/internal/privilege"
)

// Swapper gives everybody who uses the mount at from, in whatever namespace,
// the file system mounted at to instead, and takes the mount at to away. At
// from and at every other mount point of the old file system the new one is
// mounted afterwards. from is a shut stub.
type Swapper func(ctx context.Context, from, to string) error

// The strategies of a restore.
const (
	StrategySwap     = "swap"
	StrategyHandover = "handover"
)

// RestoreOptions says what [Restore] does.
type RestoreOptions struct {
	Images   string
	Detach   bool   // do not wait for the tree's root
	Strategy string // empty: StrategyHandover where a daemon is in the images, else StrategySwap
	Mounts   []MountCommand
	Init     []InitChange  // of what daemons in the images had negotiated
	Timeout  time.Duration // of each mount command with its swap; 0: a minute
	CRIU     string        // as in DumpOptions
	Extra    []string

	Program string  // the spfs that serves the stubs; empty: this one
	Swap    Swapper // needed with Mounts

	// Event, if not nil, is told what happens, a line each.
	Event func(line string)
}

// Restored says what [Restore] did.
type Restored struct {
	PID    int // of the tree's root
	Status int // its exit status as a shell has it; 0 with Detach
}

// Restore restores a tree onto stubs, mounts what it was told to mount and
// swaps the tree onto that. Tasks that touch a file system that has not been
// swapped wait. A file system whose daemon is in the images needs neither: its
// connection is made anew and given to the daemon.
//
// An error means that there is no tree, unless it wraps [ErrTreeWaits].
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	if o.Event == nil {
		o.Event = func(string) {}
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	r := &restore{o: o}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	defer r.dir.Close()
	w, err := newWorkspace()
	if err != nil {
		return nil, fmt.Errorf("a directory for the restore: %w", err)
	}
	r.workspace = w

	err = r.mountStubs(ctx)
	if err == nil {
		err = r.adopt(ctx)
	}
	if err == nil {
		err = r.runCRIU(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.undo())
	}
	err = errors.Join(r.mountReal(ctx), r.finishAdopted(ctx), w.close())
	if err != nil {
		return nil, &waits{pid: r.pid, err: err}
	}
	r.sayWaiting()
	done := &Restored{PID: r.pid}
	if !o.Detach {
		done.Status, err = waitFor(r.pid)
		// A stub that it never was swapped from is of no use now.
		sweep()
	}
	return done, err
}

// ErrTreeWaits is wrapped by errors after which the restored tree is there,
// and waits on a stub.
var ErrTreeWaits = errors.New("the tree is restored, and waits")

type waits struct {
	pid int
	err error
}

func (w *waits) Error() string {
	first, rest, more := strings.Cut(w.err.Error(), "\n")
	if more {
		rest = "\n" + rest
	}
	return fmt.Sprintf("%s; process %d is restored and waits for its file system (see \"spfs status\")%s", first, w.pid, rest)
}
func (w *waits) Unwrap() error        { return w.err }
func (w *waits) Is(target error) bool { return target == ErrTreeWaits }

// restore is one restore under way.
type restore struct {
	o         RestoreOptions
	dir       *os.File // of the images
	manifest  *Manifest
	extra     *criuOptions
	criu      *program
	program   string
	workspace *workspace
	stubs     []*stub
	adopted   []*adopted
	bound     []string // mount points of the machine's that stubs were bound to
	swapped   map[*stub]bool
	stubOf    map[*FileSystem]*stub // that daemons in the images serve, with StrategySwap
	orphans   *orphanage            // nil before CRIU runs
	endGuard  func()                // likewise
	pid       int
}

// prepare checks everything that can be checked before anything is changed.
func (r *restore) prepare() (err error) {
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	switch r.o.Strategy {
	case "", StrategySwap, StrategyHandover:
	default:
		return exit.Usage("--strategy %s: only %s and %s are known", r.o.Strategy, StrategySwap, StrategyHandover)
	}
	if r.extra, err = parseOptions(r.o.Extra); err != nil {
		return err
	}
	if r.dir, err = openImages(r.o.Images); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.dir.Close()
		}
	}()
	if r.manifest, err = loadManifest(r.dir); err != nil {
		return exit.Refuse(err)
	}
	if err := r.checkStrategy(); err != nil {
		return err
	}
	if err := r.checkMounts(); err != nil {
		return err
	}
	if err := r.changeInit(); err != nil {
		return err
	}
	if r.criu, err = findCRIU(r.o.CRIU); err != nil {
		return err
	}
	if r.program = r.o.Program; r.program == "" {
		if r.program, err = os.Executable(); err != nil {
			return err
		}
	}
	r.swapped = make(map[*stub]bool)
	r.stubOf = make(map[*FileSystem]*stub)
	return nil
}

// loadManifest reads the manifest of a checkpoint and holds it against the
// images.
func loadManifest(dir *os.File) (*Manifest, error) {
	names, err := imageNames(dir)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("image directory %s holds no images", dir.Name())
	}
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	return m, m.checkImages(dir)
}

// checkStrategy holds --strategy against the manifest.
func (r *restore) checkStrategy() error {
	served := r.manifest.served()
	switch {
	case r.o.Strategy == StrategyHandover && served == nil:
		return exit.Refuse(errors.New("--strategy handover gives a restored daemon its connection back, so it needs the daemon in the images; " +
			"this tree's daemons were outside of it: use --strategy swap"))
	case r.o.Strategy == StrategySwap && served != nil && r.o.Swap == nil:
		return errors.New("--strategy swap needs a swapper")
	}
	for i := range r.manifest.FileSystems {
		if fs := &r.manifest.FileSystems[i]; r.o.Strategy == StrategySwap && fs.Record != nil {
			if err := checkUnlinked(fs); err != nil {
				return exit.Refuse(err)
			}
		}
	}
	return nil
}

// served returns a file system whose daemon is in the images, if there is one.
func (m *Manifest) served() *FileSystem {
	for i := range m.FileSystems {
		if m.FileSystems[i].Record != nil {
			return &m.FileSystems[i]
		}
	}
	return nil
}

// checkMounts holds --mount against the manifest.
func (r *restore) checkMounts() error {
	seen := make(map[*FileSystem]string)
	for _, m := range r.o.Mounts {
		fs := r.manifest.find(m.Point)
		if fs == nil {
			return exit.Usage("--mount %s: the tree has no FUSE mount there, only at: %s", m.Point, r.manifest.points())
		}
		if fs.Record != nil {
			return exit.Usage("--mount %s: its daemon is in the images, and comes back with the tree", m.Point)
		}
		if other, twice := seen[fs]; twice {
			return exit.Usage("--mount %s: it is the same file system as %s: one command for both", m.Point, other)
		}
		seen[fs] = m.Point
	}
	if len(r.o.Mounts) > 0 && r.o.Swap == nil {
		return errors.New("--mount needs a swapper")
	}
	return nil
}

// find returns the file system that is mounted at a point in the tree.
func (m *Manifest) find(point string) *FileSystem {
	for i := range m.FileSystems {
		for _, mt := range m.FileSystems[i].Mounts {
			if string(mt.Point) == point {
				return &m.FileSystems[i]
			}
		}
	}
	return nil
}

// points lists the mount points for a message.
func (m *Manifest) points() string {
	var all []string
	for _, fs := range m.FileSystems {
		for _, mt := range fs.Mounts {
			all = append(all, string(mt.Point))
		}
	}
	if len(all) == 0 {
		return "none"
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

// mountStubs mounts a stub for each file system.
func (r *restore) mountStubs(ctx context.Context) error {
	for i := range r.manifest.FileSystems {
		fs := &r.manifest.FileSystems[i]
		if fs.Record != nil {
			if r.o.Strategy != StrategySwap {
				continue
			}
			placeholder, err := placeholderOf(fs)
			if err != nil {
				return exit.Refuse(fmt.Errorf("%s: %w", fs.Mounts[0].Point, err))
			}
			fs = placeholder
		} else if r.manifest.HostNamespace {
			there, err := mountedAlready(fs)
			if err != nil {
				return err
			}
			if there {
				r.o.Event(fmt.Sprintf("%s is mounted already, and used as it is", fs.Mounts[0].Point))
				continue
			}
		}
		path, err := r.workspace.mkdir("stub", i)
		if err != nil {
			return err
		}
		s, err := startStub(ctx, r.program, path, fs)
		if err != nil {
			return err
		}
		r.stubs = append(r.stubs, s)
		if r.manifest.FileSystems[i].Record != nil {
			r.stubOf[&r.manifest.FileSystems[i]] = s
		}
		if r.manifest.HostNamespace {
			if err := r.bindAt(s.fs, s.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// external is what CRIU is told to mount for a file system that is at path.
func (fs *FileSystem) external(path string) []string {
	var all []string
	for _, m := range fs.Mounts {
		all = append(all, fmt.Sprintf("mnt[%s]:%s", m.Key, filepath.Join(path, string(m.Root))))
	}
	return all
}

// runCRIU restores the tree. All gates are shut when it returns without error.
func (r *restore) runCRIU(ctx context.Context) error {
	request := &rpc.CriuOpts{
		ImagesDirFd: proto.Int32(int32(r.dir.Fd())),
		LogFile:     proto.String(restoreLog),
		LogLevel:    proto.Int32(logLevel),
		// As a sibling of CRIU's the tree's root is a child of this
		// process, which can wait for it.
		RstSibling: proto.Bool(!r.o.Detach),
	}
	if !r.manifest.HostNamespace {
		for _, s := range r.stubs {
			request.External = append(request.External, s.fs.external(s.path)...)
		}
		for _, a := range r.adopted {
			if r.stubOf[a.fs] == nil {
				request.External = append(request.External, a.fs.external(a.path)...)
			}
		}
	}
	if r.manifest.IgnoreCgroups {
		request.ManageCgroupsMode = rpc.CriuCgMode_IGNORE.Enum()
	}
	inherited, err := r.inherit(request)
	if err != nil {
		return err
	}
	defer inherited.close()
	done, err := r.extra.apply(request)
	if err != nil {
		return err
	}
	defer done()
	if r.orphans, err = openOrphanage(); err != nil {
		return err
	}
	hooks := &restoreHooks{ctx: ctx, restore: r}
	r.endGuard = hooks.endGuard
	r.criu.orphans = func() {
		if hooks.giveUp() {
			r.orphans.kill()
		}
	}
	err = r.criu.do(&rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: request}, hooks)
	if err != nil && !hooks.giveUp() {
		err = nil // whatever CRIU died of since, the tree runs
	}
	if r.pid = hooks.pid; err == nil {
		// Else only when whoever has come is gone: see undo.
		hooks.endGuard()
		r.orphans.close()
	}
	switch {
	case hooks.err != nil:
		return hooks.err
	case err != nil:
		return errors.Join(r.criu.failed("restore the tree", r.dir, restoreLog, err), r.adoptedErr())
	}
	return nil
}

// restoreHooks is called by CRIU, on the way.
type restoreHooks struct {
	criu.NoNotify
	ctx     context.Context
	restore *restore
	pid     int
	guard   *guard // nil, but from when the connections are the daemons'
	err     error

	fate atomic.Int32 // of the tree: decided once
}

// What becomes of a tree.
const (
	undecided = iota
	letGo
	givenUp
)

// giveUp says whether the tree is to be killed: unless it was let go.
func (h *restoreHooks) giveUp() bool {
	return h.fate.CompareAndSwap(undecided, givenUp) || h.fate.Load() == givenUp
}

// PreRestore runs when CRIU has begun and has not restored anything yet.
func (h *restoreHooks) PreRestore() error {
	h.err = h.restore.criu.check(h.restore.dir, restoreLog)
	return h.err
}

// PostRestore runs when all files are opened and mapped, and no task runs yet;
// CRIU kills them when it fails (cr-restore.c: restore_root_task).
func (h *restoreHooks) PostRestore(pid int32) error {
	h.pid = int(pid)
	h.err = shutAll(h.ctx, h.restore.stubs)
	if h.err == nil {
		h.err = h.restore.handOver(h.ctx)
	}
	if h.err == nil && len(h.restore.adopted) > 0 {
		h.guard, h.err = guardConnections(h.pid, h.restore.adopted)
	}
	return h.err
}

// PostResume runs when CRIU has let everyone go.
func (h *restoreHooks) PostResume() error {
	if !h.fate.CompareAndSwap(undecided, letGo) {
		return errors.New("CRIU has died")
	}
	return nil
}

func (h *restoreHooks) endGuard() {
	if h.guard != nil {
		h.guard.end()
		h.guard = nil
	}
}

func shutAll(ctx context.Context, stubs []*stub) error {
	for _, s := range stubs {
		if err := s.shut(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mountReal mounts the real file systems and swaps the tree onto them.
func (r *restore) mountReal(ctx context.Context) error {
	for i, m := range r.o.Mounts {
		for _, s := range r.stubs {
			if s.fs != r.manifest.find(m.Point) {
				continue
			}
			if err := r.replace(ctx, i, m, s); err != nil {
				return err
			}
			r.swapped[s] = true
		}
	}
	return nil
}

// sayWaiting tells what the tree waits for, and what ends that.
func (r *restore) sayWaiting() {
	for _, s := range r.stubs {
		if !r.swapped[s] {
			r.o.Event(fmt.Sprintf("%s waits for its file system; mount it somewhere and run: spfs-swap run --from %s --to THERE",
				s.fs.Mounts[0].Point, s.path))
		}
	}
}

// replace mounts one real file system in place of a stub.
func (r *restore) replace(ctx context.Context, i int, m MountCommand, s *stub) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	dir, err := r.workspace.mkdir("real", i)
	if err != nil {
		return err
	}
	if err := m.run(ctx, dir); err != nil {
		return err
	}
	r.o.Event(fmt.Sprintf("%s is mounted again", m.Point))
	if err := r.o.Swap(ctx, s.path, dir); err != nil {
		return fmt.Errorf("swapping %s: %w", m.Point, err)
	}
	r.o.Event(fmt.Sprintf("%s is swapped", m.Point))
	return nil
}

// undo takes away what a failed restore made.
func (r *restore) undo() error {
	var errs []error
	for i := len(r.bound) - 1; i >= 0; i-- {
		if err := unix.Unmount(r.bound[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", r.bound[i], err))
		}
	}
	for _, s := range r.stubs {
		errs = append(errs, s.stop())
	}
	if r.orphans != nil {
		r.orphans.kill()
	}
	errs = append(errs, r.closeAdopted(), r.workspace.close())
	if r.orphans != nil {
		errs = append(errs, r.orphans.empty())
		r.orphans.close()
	}
	if r.endGuard != nil {
		r.endGuard()
	}
	return errors.Join(errs...)
}

// waitFor waits for a child and returns its exit status as a shell has it.
func waitFor(pid int) (int, error) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return 0, err
	}
	state, err := p.Wait()
	if err != nil {
		return 0, fmt.Errorf("waiting for process %d: %w", pid, err)
	}
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}
