package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// Checkout is the top directory of the source tree.
var Checkout = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}()

// Programs holds the paths of what is built once per run.
type Programs struct {
	SPFS, Swap                      string // under test
	Counter, Puppet, Container, Pod string // fixtures …
	Threads, Storm                  string
	Loopback, Writeback             string // … that are FUSE daemons
	Contained, Stopper, FaultyCRIU  string
	CRIU, CRIUNext                  string // bin/criu and bin/criu-next, from "make deps"
}

var built struct {
	sync.Mutex
	dir  string
	err  error
	done bool
}

// Build returns the programs, building them first if this process has not.
// What is missing on the machine fails t, and is named.
func Build(t T) Programs {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if !built.done {
		built.done = true
		built.dir, built.err = build()
	}
	if built.err != nil {
		t.Fatalf("%v", built.err)
	}
	at := func(name string) string { return filepath.Join(built.dir, name) }
	return Programs{
		SPFS: at("spfs"), Swap: at("spfs-swap"),
		Counter: at("counter"), Puppet: at("puppet"), Container: at("container"), Pod: at("pod"),
		Threads: at("threads"), Storm: at("storm"),
		Loopback: at("loopback"), Writeback: at("writeback"),
		Contained: at("contained"), Stopper: at("stopper"), FaultyCRIU: at("faultycriu"),
		CRIU:     filepath.Join(Checkout, "bin", "criu"),
		CRIUNext: filepath.Join(Checkout, "bin", "criu-next"),
	}
}

// BuildWith builds a command with a build tag, once per run.
func BuildWith(t T, name, tag string) string {
	t.Helper()
	Build(t)
	built.Lock()
	defer built.Unlock()
	path := filepath.Join(built.dir, name+"-"+tag)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-tags", tag, "-o", path, "./cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := compile(cmd); err != nil {
		t.Fatalf("%v", err)
	}
	return path
}

// RemoveBuilt removes what Build made. Call it when all tests are over.
func RemoveBuilt() {
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	built.dir, built.done = "", false
}

func build() (dir string, err error) {
	for _, need := range []struct{ path, pkg string }{
		{"bindfs", "bindfs"}, {"sshfs", "sshfs"}, {"fusermount3", "fuse3"}, {"gcc", "gcc"},
		{"/usr/sbin/sshd", "openssh-server"}, {"ssh-keygen", "openssh-client"},
		{filepath.Join(Checkout, "bin", "criu"), ""},
		{filepath.Join(Checkout, "bin", "criu-next"), ""},
	} {
		if _, err := exec.LookPath(need.path); err == nil {
			continue
		} else if need.pkg == "" {
			return "", fmt.Errorf("%s is missing: run \"make deps\"", need.path)
		}
		return "", fmt.Errorf("%s is missing: run \"make deps\", or install the package %s", need.path, need.pkg)
	}

	dir, err = os.MkdirTemp("", "programs-")
	if err != nil {
		return "", err
	}
	return dir, buildInto(dir)
}

func buildInto(dir string) error {
	for name, pkg := range map[string]string{
		"spfs": "./cmd/spfs", "spfs-swap": "./cmd/spfs-swap", "loopback": "./test/fixture/loopback",
		"stopper": "./test/fixture/stopper", "faultycriu": "./test/fixture/faultycriu",
		"contained": "./test/cmd/contained",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := compile(cmd); err != nil {
			return err
		}
	}
	for _, name := range []string{"counter", "puppet", "container", "pod", "threads", "storm", "writeback"} {
		args := []string{"-std=gnu11", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread",
			"-o", filepath.Join(dir, name), filepath.Join("test", "fixture", name+".c")}
		if name == "writeback" { // what "pkg-config fuse3" says, of all in one directory
			args = append(args, "-I/usr/include/fuse3", "-lfuse3")
		}
		if err := compile(exec.Command("gcc", args...)); err != nil {
			return err
		}
	}
	return nil
}

func compile(cmd *exec.Cmd) error {
	cmd.Dir = Checkout
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}
