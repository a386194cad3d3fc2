package criuhook

import (
	"context"
	"errors"
	"fmt"
	"os"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"spfs/internal/exit"
	"spfs/internal/privilege"
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
	CRIU         string // path or name; empty: one is looked for
	Extra        []string
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
	mounted, own, err := examine(o.Tree)
	if err != nil {
		return nil, exit.Refuse(err)
	}
	path, err := findCRIU(o.CRIU)
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
	if own {
		for _, m := range mounted {
			request.External = append(request.External, fmt.Sprintf("mnt[%s]:%s", m.Mountpoint, m.key))
		}
	}
	done, err := extra.apply(request)
	if err != nil {
		return nil, err
	}
	defer done()

	c := criu.MakeCriu()
	c.SetCriuPath(path)
	hooks := &dumpHooks{ctx: ctx, dir: dir, root: o.Tree}
	if err := c.Dump(request, hooks); err != nil {
		err = errors.Join(dumpFailed(dir, hooks, err), removeImages(dir))
		return nil, err
	}
	hooks.manifest.sealStatistics(dir)
	return &Dumped{hooks.manifest}, nil
}

func dumpFailed(dir *os.File, hooks *dumpHooks, err error) error {
	if hooks.err != nil {
		return hooks.err
	}
	return criuFailed("dump the tree", dir, dumpLog, err)
}

// dumpHooks is called by CRIU, on the way.
type dumpHooks struct {
	criu.NoNotify
	ctx      context.Context
	dir      *os.File
	root     int
	manifest *Manifest
	err      error
}

// PostDump runs while the tree is stopped and its images are complete; CRIU
// lets the tree go on when it fails (cr-dump.c: cr_dump_finish).
func (h *dumpHooks) PostDump() error {
	h.err = h.ctx.Err()
	if h.err == nil {
		h.manifest, h.err = record(h.dir, h.root)
	}
	if h.err == nil {
		h.err = h.manifest.write(h.dir)
	}
	return h.err
}

// examine looks at a tree before anything is done to it.
func examine(root int) (mounted []treeMount, own bool, err error) {
	pids, err := tree(root)
	if err != nil {
		return nil, false, err
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			return nil, false, fmt.Errorf("process %s: spfs itself is part of the tree, so it cannot stop it; run it from outside", describe(root))
		}
		if err := refuseProcess(pid); err != nil {
			return nil, false, err
		}
	}
	mounted, err = fuseMounts(root)
	if err != nil {
		return nil, false, err
	}
	if err := refuseDaemons(pids, mounted); err != nil {
		return nil, false, err
	}
	own, err = ownNamespace(root)
	return mounted, own, err
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
