package handover

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever asks is known by the numbers of the namespace that the connection was
// mounted in: this process's, or the daemon's.
func TestWhoAsks(t *testing.T) {
	child := exec.Command("sleep", "1000")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is the thread's
	defer runtime.UnlockOSThread()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	root, inside := child.Process.Pid, 1
	ask := func(named int) *threads {
		t.Helper()
		found, err := threadsOf(root, root, func() (int, error) { return named, nil })
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	here, beneath, elsewhere := ask(unix.Gettid()), ask(0), ask(unix.Gettid()+1)
	const kthreadd = 2
	for what, c := range map[string]struct{ is, want bool }{
		"the tree's, by its number here":       {here.goesOn(root), true},
		"another, by its number here":          {here.goesOn(os.Getpid()), false},
		"the kernel's, by its number here":     {here.kernel(kthreadd), true},
		"another is the kernel's, here":        {here.kernel(root), false},
		"the tree's, by its own number":        {beneath.goesOn(inside), true},
		"the tree's, by its number elsewhere":  {beneath.goesOn(root), false},
		"a number that is the kernel's here":   {beneath.kernel(kthreadd), false},
		"somebody without a number, beneath":   {beneath.goesOn(0), false},
		"somebody without a number, is kernel": {beneath.kernel(0), true},
		"a number that says nothing":           {elsewhere.goesOn(root), false},
	} {
		if c.is != c.want {
			t.Errorf("%s: %v, want %v", what, c.is, c.want)
		}
	}
	// Dead, and not waited for.
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, root, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if here.goesOn(root) || beneath.goesOn(inside) {
		t.Error("who is ending goes on")
	}
}
