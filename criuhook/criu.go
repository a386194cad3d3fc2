package criuhook

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// leastCRIU is the oldest version that takes mounts as this package gives
// them, in go-criu's notation.
const leastCRIU = 40000

const criuAdvice = "CRIU 4.0 or newer is needed: \"make deps\" leaves one at bin/criu, --criu names another"

// program is a CRIU. It works for one request at a time.
type program struct {
	path  string
	ready *swrk // is running, and waits for a request; nil if none does
	known bool  // its version is

	// apart keeps CRIU from what a terminal tells everyone: whoever pressed ^C
	// means this process, and a CRIU that dies while its code is in somebody's
	// memory leaves that behind.
	apart bool

	// orphans, if not nil, is called when CRIU has died, or has said that it
	// failed, to end what it has left.
	orphans func()
}

// findCRIU finds the CRIU to run: the one named; else the one beside this
// program, where "make deps" leaves it; else the machine's.
func findCRIU(named string) (*program, error) {
	path := named
	if path == "" {
		if self, err := os.Executable(); err == nil {
			beside := filepath.Join(filepath.Dir(self), "criu")
			if unix.Access(beside, unix.X_OK) == nil {
				path = beside
			}
		}
	}
	if path == "" {
		path = "criu"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("no CRIU: %w; %s", err, criuAdvice)
	}
	return &program{path: found}, nil
}

// start starts a process for the next request, so that it need not be waited for.
func (p *program) start() (err error) {
	p.ready, err = startSwrk(p.path, p.apart, p.orphans)
	return err
}

// do makes a request, by which the process that was started ends.
func (p *program) do(request *rpc.CriuReq, notify criu.Notify) error {
	if p.ready == nil {
		if err := p.start(); err != nil {
			return err
		}
	}
	c := p.ready
	p.ready = nil
	request.Opts.NotifyScripts = proto.Bool(true)
	return errors.Join(c.converse(request, notify), c.end())
}

// end ends the process that was started, if it got no request.
func (p *program) end() error {
	c := p.ready
	p.ready = nil
	if c == nil {
		return nil
	}
	return c.end()
}

// check refuses a CRIU that is too old. It has begun to work on a request, and
// so its log tells which it is: to ask it takes as long as to start it.
func (p *program) check(dir *os.File, log string) error {
	if p.known {
		return nil
	}
	major, minor, err := loggedVersion(dir, log)
	if err != nil { // it logs less, perhaps
		return p.ask()
	}
	return p.judge(major*10000 + minor*100)
}

// judge says whether a version, in go-criu's notation, is one that will do.
func (p *program) judge(version int) error {
	if version < leastCRIU {
		return fmt.Errorf("%s is CRIU %d.%d, which is too old; %s", p.path, version/10000, version/100%100, criuAdvice)
	}
	p.known = true
	return nil
}

// loggedVersion reads the version that CRIU logs first.
func loggedVersion(dir *os.File, log string) (major, minor int, err error) {
	f, err := openIn(dir, log, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return 0, 0, err
	}
	_, rest, ok := strings.Cut(string(head), "Version: ")
	if !ok {
		return 0, 0, errors.New("no version is logged")
	}
	_, err = fmt.Sscanf(rest, "%d.%d", &major, &minor)
	return major, minor, err
}

// ask refuses what is no CRIU, or is too old.
func (p *program) ask() error {
	c := criu.MakeCriu()
	c.SetCriuPath(p.path)
	version, err := c.GetCriuVersion()
	if err != nil {
		if said := askVersion(p.path); said != "" {
			return fmt.Errorf("%s is CRIU %s, which is too old; %s", p.path, said, criuAdvice)
		}
		return fmt.Errorf("%s does not answer as CRIU does (%w); %s", p.path, oneLine(err), criuAdvice)
	}
	return p.judge(version)
}

// failed makes an error of a request that failed. If it did before CRIU's version
// was known, that may be why.
func (p *program) failed(doing string, dir *os.File, log string, err error) error {
	if !p.known {
		if err := p.ask(); err != nil {
			return err
		}
	}
	return criuFailed(doing, dir, log, err)
}

// askVersion asks a program for its version as CRIU tells it. Before 3.0 it was
// not part of the RPC.
func askVersion(path string) string {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(out), "\n") {
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// openImages opens an existing image directory.
func openImages(dir string) (*os.File, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(abs, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("image directory: %w", err)
	}
	return f, nil
}

// criuError is what CRIU said when it failed.
type criuError struct {
	doing string
	log   string   // its file
	lines []string // the last errors in it
	err   error    // what go-criu made of it
}

func (e *criuError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "CRIU could not %s", e.doing)
	if len(e.lines) == 0 {
		fmt.Fprintf(&b, ": %v", e.err)
	}
	fmt.Fprintf(&b, " (its log: %s)", e.log)
	for _, l := range e.lines {
		fmt.Fprintf(&b, "\n  %s", l)
	}
	return b.String()
}

func (e *criuError) Unwrap() error { return e.err }

// shownErrors is how many of CRIU's error lines are shown: the cause is
// seldom the last, which only says that all of it failed.
const shownErrors = 5

// criuFailed makes an error of what CRIU logged.
func criuFailed(doing string, dir *os.File, log string, err error) error {
	e := &criuError{doing: doing, log: filepath.Join(dir.Name(), log), err: err}
	f, openErr := openIn(dir, log, unix.O_RDONLY)
	if openErr != nil {
		if errors.Is(openErr, fs.ErrNotExist) {
			return fmt.Errorf("CRIU would not %s (it wrote no log): %w; an option after \"--\" may be none of its, or have a value it does not take", doing, oneLine(err))
		}
		return e
	}
	defer f.Close()
	e.lines = errorLines(bufio.NewReader(f))
	return e
}

// errorLines returns the last lines of a CRIU log that tell of errors, each
// from "Error" on.
func errorLines(r *bufio.Reader) []string {
	var last []string
	for {
		line, err := r.ReadString('\n')
		if i := strings.Index(line, "Error ("); i >= 0 && !harmless(line) {
			line = strings.TrimSpace(line[i:])
			if n := len(last); n == 0 || last[n-1] != line {
				last = append(last, line)
			}
			if len(last) > shownErrors {
				last = last[1:]
			}
		}
		if err != nil {
			return last
		}
	}
}

// harmless tells what CRIU logs as an error and goes on after: it always
// tries to raise its own limits, which root may not without
// CAP_SYS_RESOURCE.
func harmless(line string) bool {
	return strings.Contains(line, "rlimit: Can't setup RLIMIT_NOFILE for self")
}

// oneLine is err with its lines joined, as errors.Join makes several.
func oneLine(err error) error {
	return flattened{err}
}

type flattened struct{ error }

func (f flattened) Error() string { return strings.ReplaceAll(f.error.Error(), "\n", "; ") }
func (f flattened) Unwrap() error { return f.error }

// openPath opens a path for reference.
func openPath(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
}
