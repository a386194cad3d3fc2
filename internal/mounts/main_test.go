package mounts

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

const contained = "SPFS_TEST_CONTAINED"

// TestMain runs the tests in a mount namespace of their own, with which all
// that they mount goes away; and runs "hold" as a process that stays.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "hold" {
		hold()
		return
	}
	if os.Getenv(contained) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make / private:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), contained+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace of their own:", err)
		os.Exit(1)
	}
}

// hold says that it runs and waits for its standard input to end.
func hold() {
	os.Stdout.WriteString("ready\n")
	os.Stdin.Read(make([]byte, 1))
}

// holder starts a process in a copy of the tests' mount namespace with the
// propagation flag (MS_PRIVATE …) given to all of it, or 0 for none.
func holder(t *testing.T, propagation uintptr) *Namespace {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "hold")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// os/exec's Unshareflags make the copy private, which is not what is
	// wanted here: Cloneflags leave it as it is.
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal("holder:", err)
	}
	ns, err := openNamespace(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if propagation != 0 {
		if err := ns.Do(func(*os.File) error { return unix.Mount("", "/", "", unix.MS_REC|propagation, "") }); err != nil {
			t.Fatal(err)
		}
	}
	ns.PIDs = []int{cmd.Process.Pid}
	return ns
}

// tmpfs mounts one on a new directory and writes its name into the file
// "name" on it.
func tmpfs(t *testing.T, point, name string) {
	t.Helper()
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(name, point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	if err := os.WriteFile(point+"/name", []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
}

// own is the tests' namespace.
func own(t *testing.T) *Namespace {
	t.Helper()
	ns, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// at returns the mounts at a point of a namespace, the top one last.
func at(t *testing.T, ns *Namespace, point string) []*Mount {
	t.Helper()
	table, err := ns.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	var found []*Mount
	for _, m := range table {
		if m.Point == point {
			found = append(found, m)
		}
	}
	return found
}
