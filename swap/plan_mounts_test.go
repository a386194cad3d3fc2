package swap

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// TestPlanRefusesLockedMounts plans with a process in a user namespace, whose
// mount namespace came by the old mount when it was made.
func TestPlanRefusesLockedMounts(t *testing.T) {
	m := newTwoMounts(t, "-o", "allow_other")
	m.write(t, "file", "x")
	rig.Public(t, m.old)
	rig.StartPuppet(t, func(cmd *exec.Cmd) {
		ids := []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	})
	p := rig.StartPuppet(t)
	p.Open(m.old+"/file", unix.O_RDONLY)
	err := m.plan(t, Scope{}).Err()
	if err == nil || !strings.Contains(err.Error(), "it is locked there") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a mount point can't be changed, and the plan says %v", err)
	}
	// Whoever is named is swapped: no mount point changes then.
	if err := m.plan(t, Scope{PIDs: []int{p.PID}}).Err(); err != nil {
		t.Errorf("a process whose mount is not locked: %v", err)
	}
}
