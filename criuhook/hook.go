package criuhook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/internal/mounts"
	"spfs/internal/privilege"
	"spfs/internal/proctree"
)

// HookOptions says what [Hook] does.
type HookOptions struct {
	Action string // CRTOOLS_SCRIPT_ACTION
	Images string // CRTOOLS_IMAGE_DIR
	Root   string // CRTOOLS_INIT_PID

	// External is what was given to CRIU as --external, one a line; empty:
	// what CRIU's command line says.
	External string

	// Mounts are mount commands as of RestoreOptions.Mounts, for when CRIU has ended.
	Mounts  []MountCommand
	Timeout time.Duration

	Program string // as in RestoreOptions
	Swap    Swapper
	Event   func(line string)
}

// Hook is CRIU's action script: what [Dump] and [Restore] do, for those who
// call CRIU themselves. CRIU calls it once for each stage, and does not go on
// if it fails, save in post-resume.
//
//	post-dump     writes the manifest
//	pre-restore   mounts stubs, at the directories given to CRIU as external
//	post-restore  shuts their gates
//	post-resume   takes note that the tree runs
//
// CRIU calls nobody when it fails, nor when it is done. So pre-restore leaves a
// process behind that runs [Watch].
func Hook(ctx context.Context, o HookOptions) error {
	switch o.Action {
	case "post-dump", "pre-restore", "post-restore", "post-resume":
	case "":
		return errors.New("CRTOOLS_SCRIPT_ACTION is not set: this is to be called by CRIU (--action-script PATH-OF-SPFS)")
	default:
		return nil // a stage that needs nothing
	}
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	o.fill()
	if o.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Program = self
	}
	h := &hook{HookOptions: o}
	var err error
	switch o.Action {
	case "post-dump":
		err = h.postDump()
	case "pre-restore":
		err = h.preRestore(ctx)
	case "post-restore":
		err = h.postRestore(ctx)
	case "post-resume":
		err = h.postResume()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.Action, err)
	}
	return nil
}

// fill puts in what was left out.
func (o *HookOptions) fill() {
	if o.Event == nil {
		o.Event = func(string) {}
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
}

type hook struct{ HookOptions }

func (h *hook) postDump() error {
	root, err := strconv.Atoi(h.Root)
	if err != nil {
		return fmt.Errorf("CRTOOLS_INIT_PID: %q is not a pid", h.Root)
	}
	dir, err := h.openImages()
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := record(dir, root, nil)
	if err != nil {
		return err
	}
	return m.write(dir)
}

func (h *hook) openImages() (*os.File, error) {
	dir, err := openImages(h.Images)
	if err != nil {
		return nil, fmt.Errorf("CRTOOLS_IMAGE_DIR: %w", err)
	}
	return dir, nil
}

// criuPID is the CRIU that called: CRTOOLS_IMAGE_DIR is a descriptor of its
// (criu/action-scripts.c: run_shell_scripts).
func (h *hook) criuPID() (int, error) {
	rest, ok := strings.CutPrefix(h.Images, "/proc/")
	pid, _, _ := strings.Cut(rest, "/")
	n, err := strconv.Atoi(pid)
	if !ok || err != nil {
		return 0, fmt.Errorf("CRTOOLS_IMAGE_DIR=%s names no descriptor of CRIU's", h.Images)
	}
	return n, nil
}

// workspacePath is the same in all stages of one restore.
func (h *hook) workspacePath() (string, error) {
	pid, err := h.criuPID()
	if err != nil {
		return "", err
	}
	started, err := startTime(pid)
	if err != nil {
		return "", err
	}
	return filepath.Join(runDirectory, fmt.Sprintf("%scriu-%d-%s", workspacePrefix, pid, started)), nil
}

// startTime tells a process from others that have its pid: the 22nd field of
// /proc/PID/stat.
func startTime(pid int) (string, error) {
	fields, err := proctree.Stat(pid)
	if err != nil {
		return "", err
	}
	return fields[19], nil
}

func (h *hook) preRestore(ctx context.Context) error {
	dir, err := h.openImages()
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := loadManifest(dir)
	if err != nil {
		return err
	}
	r := &restore{o: RestoreOptions{Mounts: h.Mounts, Swap: h.Swap, Event: h.Event}, manifest: m, program: h.Program}
	if err := r.checkMounts(); err != nil {
		return err
	}
	if err := h.checkDetached(); err != nil {
		return err
	}
	places, err := h.places(m)
	if err != nil {
		return err
	}
	path, err := h.workspacePath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(runDirectory, 0o700); err != nil {
		return err
	}
	sweep()
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	w, err := openWorkspace(path)
	if err != nil {
		return err
	}
	r.workspace = w
	// By post-resume CRIU has closed its image directory.
	err = m.write(w.dir)
	if err == nil {
		err = r.mountStubs(ctx)
	}
	for _, s := range r.stubs {
		for _, mt := range s.fs.Mounts {
			if dir := places[mt.Key]; err == nil && dir != "" {
				if err = bindPart(s.path, mt.Root, dir, ""); err == nil {
					r.bound = append(r.bound, dir)
				}
			}
		}
	}
	if err == nil {
		err = h.startWatch(w, r.bound)
	}
	if err != nil {
		return errors.Join(err, r.undo())
	}
	return nil
}

// arguments is CRIU's command line.
func (h *hook) arguments() ([]string, error) {
	pid, err := h.criuPID()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// checkDetached refuses mount commands where CRIU stays until the tree ends.
func (h *hook) checkDetached() error {
	if len(h.Mounts) == 0 {
		return nil
	}
	args, err := h.arguments()
	if err != nil {
		return err
	}
	for _, a := range args {
		switch a {
		case "-d", "--restore-detached", "swrk", "service": // the last two always do
			return nil
		}
	}
	return errors.New("SPFS_MOUNT needs CRIU to end when the tree is restored: give it --restore-detached")
}

// places returns where CRIU was told to find each key, of mnt[KEY]:DIR.
func (h *hook) places(m *Manifest) (map[string]string, error) {
	if m.HostNamespace {
		return nil, nil // the stubs are mounted where the tree has them
	}
	given := strings.Split(h.External, "\n")
	if h.External == "" {
		args, err := h.arguments()
		if err != nil {
			return nil, err
		}
		given = externalArguments(args)
	}
	all := make(map[string]string)
	for _, e := range given {
		if key, dir, ok := parseExternal(e); ok {
			all[key] = dir
		}
	}
	places := make(map[string]string) // ours only
	for _, fs := range m.FileSystems {
		for _, mt := range fs.Mounts {
			if places[mt.Key] = all[mt.Key]; places[mt.Key] == "" {
				return nil, fmt.Errorf("mount %s: CRIU was not told where to find it: give it --external 'mnt[%s]:DIR', "+
					"DIR being an empty directory for spfs to mount a stub on (or, where CRIU has it from elsewhere than its command line, set SPFS_EXTERNAL)", mt.Point, mt.Key)
			}
		}
	}
	return places, nil
}

// externalArguments returns the values of --external on a command line.
func externalArguments(args []string) []string {
	var values []string
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--external="); ok {
			values = append(values, v)
		} else if a == "--external" && i+1 < len(args) {
			values = append(values, args[i+1])
		}
	}
	return values
}

// parseExternal parses "mnt[KEY]:DIR".
func parseExternal(s string) (key, dir string, ok bool) {
	s, ok = strings.CutPrefix(s, "mnt[")
	if !ok {
		return "", "", false
	}
	key, dir, ok = strings.Cut(s, "]:")
	return key, dir, ok && key != "" && filepath.IsAbs(dir)
}

// underWay finds the restore that pre-restore began in a workspace.
func (o *HookOptions) underWay(path string) (*restore, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	r := &restore{
		o:         RestoreOptions{Mounts: o.Mounts, Timeout: o.Timeout, Swap: o.Swap, Event: o.Event},
		manifest:  m,
		workspace: &workspace{path: path},
		swapped:   make(map[*stub]bool),
	}
	for i := range m.FileSystems {
		s, err := stubAt(filepath.Join(path, fmt.Sprintf("stub-%d", i)), &m.FileSystems[i])
		if errors.Is(err, fs.ErrNotExist) && m.HostNamespace {
			continue // it was mounted already
		}
		if err != nil {
			return nil, err
		}
		r.stubs = append(r.stubs, s)
	}
	return r, nil
}

func (h *hook) postRestore(ctx context.Context) error {
	path, err := h.workspacePath()
	if err != nil {
		return err
	}
	r, err := h.underWay(path)
	if err != nil {
		return err
	}
	if err := shutAll(ctx, r.stubs); err != nil {
		return err
	}
	// CRIU has mounted the stubs in the tree: its directories are the user's
	// again.
	places, err := h.places(r.manifest)
	if err != nil {
		return err
	}
	for _, dir := range places {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	return nil
}

// resumed is the file in the workspace that tells the watch that the tree runs.
const resumed = "resumed"

func (h *hook) postResume() error {
	path, err := h.workspacePath()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(path, resumed), nil, 0o600)
}

// startWatch starts a process that runs [Watch], to which w is handed over.
func (h *hook) startWatch(w *workspace, bound []string) error {
	pid, err := h.criuPID()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("watching CRIU (process %d): %w", pid, err)
	}
	criu := os.NewFile(uintptr(pidfd), "pidfd")
	defer criu.Close()
	cmd := exec.Command(h.Program, append([]string{"hook", "--watch", w.path, "--"}, bound...)...)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr                   // CRIU's log
	cmd.ExtraFiles = []*os.File{criu, w.dir} // 3 and 4
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a process to watch CRIU: %w", err)
	}
	return cmd.Process.Release()
}

// Watch waits for the CRIU to end that a restore is done by. If the tree was
// resumed it then mounts the real file systems and swaps: not before, since
// CRIU keeps descriptors of every mount of the tree in flight in a socket of its
// own (criu/fdstore.c). If the tree was not resumed, it takes the stubs away.
// The pidfd of CRIU is descriptor 3, the workspace, locked, 4; bound are the
// mount points of the stubs besides.
func Watch(ctx context.Context, o HookOptions, path string, bound []string) error {
	o.fill()
	criu := os.NewFile(3, "pidfd")
	w := &workspace{path: path, dir: os.NewFile(4, path)}
	defer criu.Close()
	fds := []unix.PollFd{{Fd: int32(criu.Fd()), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(fds, -1); n > 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	_, err := os.Stat(filepath.Join(path, resumed))
	if err == nil {
		return errors.Join(o.finish(ctx, path), w.close())
	}
	r := &restore{workspace: w, bound: bound}
	all, globErr := filepath.Glob(filepath.Join(path, "stub-*"))
	if globErr != nil {
		return globErr
	}
	for _, p := range all {
		if s, err := stubAt(p, nil); err == nil {
			r.stubs = append(r.stubs, s)
		}
	}
	return r.undo()
}

// finish is what is left to do of a restore when the tree runs.
func (o *HookOptions) finish(ctx context.Context, path string) error {
	r, err := o.underWay(path)
	if err != nil {
		return err
	}
	if err := r.mountReal(ctx); err != nil {
		return err
	}
	r.sayWaiting()
	return nil
}

// bindPart mounts a part of what is mounted at path on an existing directory or
// file, with per-mount options if any are given.
func bindPart(path string, part Text, on, options string) error {
	root, err := openPath(path)
	if err != nil {
		return err
	}
	defer root.Close()
	clone, err := mounts.Clone(root, strings.TrimPrefix(string(part), "/"))
	if err == nil {
		if options != "" {
			err = mounts.SetOptions(clone, options)
		}
		if err == nil {
			err = unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, on, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		clone.Close()
	}
	if err != nil {
		return fmt.Errorf("mounting %s on %s: %w", filepath.Base(path), on, err)
	}
	return nil
}
