package criuhook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/handover"
	"spfs/internal/devfuse"
	"spfs/internal/exit"
	"spfs/internal/privilege"
	"spfs/internal/proctree"
)

// The logs that CRIU leaves in the image directory.
const (
	dumpLog    = "dump.log"
	restoreLog = "restore.log"
)

// logLevel is CRIU's "debug": its log is all there is to go by when it fails.
const logLevel = 4

// DumpOptions says what [Dump] does.
type DumpOptions struct {
	Tree         int    // pid of the tree's root
	Images       string // an existing directory without images
	LeaveRunning bool   // the tree goes on afterwards; else it is killed

	// Timeout bounds how long a tree with its own FUSE daemons may take to
	// stop; 0: ten seconds.
	Timeout time.Duration

	Program string // the spfs that is the keeper; empty: this one
	CRIU    string // path or name; empty: one is looked for
	Extra   []string
}

// Dumped says what [Dump] did.
type Dumped struct {
	Manifest *Manifest
}

// Dump checkpoints a tree with CRIU and writes the manifest into the image
// directory. If it fails the tree runs on and the directory holds no images.
func Dump(ctx context.Context, o DumpOptions) (*Dumped, error) {
	if err := privilege.NeedRoot(); err != nil {
		return nil, err
	}
	extra, err := parseOptions(o.Extra)
	if err != nil {
		return nil, err
	}
	dir, err := openImages(o.Images)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := refuseImages(dir); err != nil {
		return nil, exit.Refuse(err)
	}
	seen, err := examine(o.Tree)
	if err != nil {
		return nil, exit.Refuse(err)
	}
	c, err := findCRIU(o.CRIU)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}

	request := &rpc.CriuOpts{
		ImagesDirFd:  proto.Int32(int32(dir.Fd())),
		Pid:          proto.Int32(int32(o.Tree)),
		LeaveRunning: proto.Bool(o.LeaveRunning),
		LogFile:      proto.String(dumpLog),
		LogLevel:     proto.Int32(logLevel),
	}
	if seen.own {
		for _, m := range seen.mounted {
			request.External = append(request.External, fmt.Sprintf("mnt[%s]:%s", m.Point, m.key))
		}
	}
	done, err := extra.apply(request)
	if err != nil {
		return nil, err
	}
	defer done()

	c.apart = true
	if err := c.start(); err != nil {
		return nil, err
	}
	defer c.end()
	d := &dump{ctx: ctx, dir: dir, o: o, seen: seen, criu: c}
	if !seen.served {
		err = d.run(request)
	} else {
		err = d.runStopped(request)
	}
	if err != nil {
		return nil, errors.Join(err, removeImages(dir))
	}
	d.manifest.sealStatistics(dir)
	return &Dumped{d.manifest}, nil
}

// defaultStop bounds how long a tree may take to stop.
const defaultStop = 10 * time.Second

// dump is one dump under way. CRIU calls it, on the way.
type dump struct {
	criu.NoNotify
	ctx     context.Context
	dir     *os.File
	o       DumpOptions
	seen    *examined
	criu    *program
	session *handover.Session // nil if the daemons are outside of the tree
	told    handover.CRIU     // what CRIU was told for it
	stopped bool              // what it is about is stopped
	over    bool              // it has ended, since the tree could not be stopped

	manifest *Manifest
	err      error // of a hook
}

// run has CRIU dump the tree.
func (d *dump) run(request *rpc.CriuOpts) error {
	d.err = nil
	err := d.criu.do(&rpc.CriuReq{Type: rpc.CriuReqType_DUMP.Enum(), Opts: request}, d)
	switch {
	case d.err != nil:
		return d.err
	case err != nil:
		return d.criu.failed("dump the tree", d.dir, dumpLog, err)
	}
	return nil
}

// refused makes an exit status of what handover will not dump.
func refused(err error) error {
	for _, refusal := range []error{
		handover.ErrNoDaemon, handover.ErrOwnMount, handover.ErrCircle, handover.ErrOutside, handover.ErrDirect,
	} {
		if errors.Is(err, refusal) {
			return exit.Refuse(err)
		}
	}
	return err
}

// runStopped does that with a tree that has its own FUSE daemons, which is
// stopped before and put back after, unless it is gone.
func (d *dump) runStopped(request *rpc.CriuOpts) error {
	if request.FreezeCgroup != nil {
		return exit.Usage("CRIU option --freeze-cgroup cannot be given: spfs freezes a tree that has its own FUSE daemons itself")
	}
	timeout := d.o.Timeout
	if timeout == 0 {
		timeout = defaultStop
	}
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	var err error
	d.session, err = handover.Begin(ctx, handover.StopOptions{
		Root: d.o.Tree, Timeout: timeout, LeaveRunning: d.o.LeaveRunning, Program: d.o.Program,
	})
	if err != nil {
		return refused(err)
	}
	err = errUnforeseen
	if d.told = d.session.Foreseen(); d.told.FreezeCgroup != "" {
		err = d.run(d.tell(request))
	}
	if !d.stopped && !d.over {
		// Nobody has waited for it yet: CRIU could not begin, or was not begun.
		if err != errUnforeseen {
			cancel()
		}
		if stopErr := d.await(); stopErr != nil {
			if err == errUnforeseen || !errors.Is(stopErr, context.Canceled) {
				err = stopErr
			}
		}
	}
	if d.over {
		return refused(err)
	}
	if err == errUnforeseen {
		d.told = d.session.CRIU()
		err = d.run(d.tell(request))
	}
	if err == nil && !d.o.LeaveRunning {
		return d.session.Killed()
	}
	return errors.Join(err, d.session.Resume())
}

// errUnforeseen: CRIU must be told more than it was when it was started.
var errUnforeseen = errors.New("something was opened while CRIU began")

// tell adds to a request what CRIU is told of a tree that has its own daemons.
func (d *dump) tell(request *rpc.CriuOpts) *rpc.CriuOpts {
	request = proto.Clone(request).(*rpc.CriuOpts)
	request.External = append(request.External, d.told.External...)
	request.FreezeCgroup = proto.String(d.told.FreezeCgroup)
	if d.told.Temporary {
		request.ManageCgroupsMode = rpc.CriuCgMode_IGNORE.Enum()
	}
	return request
}

// await waits until the tree is stopped.
func (d *dump) await() error {
	err := d.session.Await()
	d.stopped, d.over = err == nil, err != nil
	return err
}

// PreDump is called when CRIU has begun and has not looked at the tree yet.
func (d *dump) PreDump() error {
	if d.err = d.criu.check(d.dir, dumpLog); d.err != nil || d.session == nil {
		return d.err
	}
	if !d.stopped {
		if d.err = d.await(); d.err != nil {
			return d.err
		}
	}
	if !d.told.Covers(d.session.CRIU()) {
		d.err = errUnforeseen
	}
	return d.err
}

// PostDump runs while the tree is stopped and its images are complete; CRIU
// lets the tree go on when it fails (cr-dump.c: cr_dump_finish).
func (d *dump) PostDump() error {
	d.err = d.ctx.Err()
	if d.err == nil && d.session != nil {
		d.err = d.session.Check()
	}
	if d.err == nil {
		d.manifest, d.err = record(d.dir, d.o.Tree, d.session)
	}
	if d.err == nil {
		d.err = d.manifest.write(d.dir)
	}
	return d.err
}

// examined is what was seen of a tree before anything was done to it.
type examined struct {
	mounted []treeMount
	own     bool // it has a mount namespace of its own
	served  bool // a FUSE daemon is one of its processes
}

// examine looks at a tree before anything is done to it.
func examine(root int) (*examined, error) {
	pids, err := proctree.Of(root)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			return nil, fmt.Errorf("process %s: spfs itself is part of the tree, so it cannot stop it; run it from outside", proctree.Name(root))
		}
		if err := refuseProcess(pid); err != nil {
			return nil, err
		}
	}
	var seen examined
	if seen.mounted, err = fuseMounts(root); err != nil {
		return nil, err
	}
	devices, err := devfuse.Find(pids)
	if err != nil {
		return nil, err
	}
	seen.served = len(devices) > 0
	seen.own, err = ownNamespace(root)
	return &seen, err
}

// refuseImages returns an error if a directory already holds a checkpoint,
// which a dump that fails halfway would have destroyed.
func refuseImages(dir *os.File) error {
	names, err := imageNames(dir)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("image directory %s already holds images (%s …): give an empty one", dir.Name(), names[0])
	}
	if err := unix.Faccessat(int(dir.Fd()), ManifestName, unix.F_OK, 0); err == nil {
		return fmt.Errorf("image directory %s already holds %s: give an empty one", dir.Name(), ManifestName)
	}
	return nil
}

// removeImages removes what a failed dump left, all but CRIU's log.
func removeImages(dir *os.File) error {
	names, err := imageNames(dir)
	if err != nil {
		return err
	}
	for _, n := range append(names, ManifestName, statistics) {
		if err := unix.Unlinkat(int(dir.Fd()), n, 0); err != nil && err != unix.ENOENT {
			return fmt.Errorf("removing the incomplete %s/%s: %w", dir.Name(), n, err)
		}
	}
	return nil
}
