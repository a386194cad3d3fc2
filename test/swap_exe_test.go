package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// programOn puts a copy of a program on m and returns what makes a puppet of
// it.
func (m *mounts) programOn(t *testing.T, name string) func(*exec.Cmd) {
	t.Helper()
	rig.Run(t, "cp", rig.Build(t).Puppet, m.data+"/"+name).OK(t)
	return func(cmd *exec.Cmd) { cmd.Path = m.old + "/" + name }
}

func exe(t *testing.T, pid int) (path string, dev uint64) {
	t.Helper()
	link := fmt.Sprintf("/proc/%d/exe", pid)
	path, err := os.Readlink(link)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		t.Fatal(err)
	}
	return path, st.Dev
}

func TestSwapExchangesPrograms(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t, m.programOn(t, "program"))
	child := p.Spawn(fork)
	worker := child.Spawn(thread)
	before, childBefore := mapsOf(t, p, m.old), mapsOf(t, child, m.old)
	if len(before) < 2 {
		t.Fatalf("the program has %d mappings", len(before))
	}
	stat := statOf(t, p.PID)

	m.swap(t)
	for _, pid := range []int{p.PID, child.PID} {
		if path, dev := exe(t, pid); path != m.old+"/program" || dev != m.newDev {
			t.Errorf("the program of %d is %s on %s, want %s on %s", pid, path, devName(dev), m.old+"/program", devName(m.newDev))
		}
	}
	sameMaps(t, p, m.old, before)
	sameMaps(t, child, m.old, childBefore)
	if after := statOf(t, p.PID); !bytes.Equal(after, stat) {
		t.Errorf("where the program, its arguments and its environment are was\n%s\nand is\n%s", stat, after)
	}
	// It runs on, can be run again, and can't be written to.
	worker.Must(unix.SYS_GETPPID)
	again := p.Spawn(fork)
	again.Must(unix.SYS_GETPPID)
	if _, err := p.Call(unix.SYS_OPENAT, unix.AT_FDCWD, m.old+"/program", unix.O_WRONLY, 0); err != unix.ETXTBSY {
		t.Errorf("opening a program that runs for writing: %v, want ETXTBSY", err)
	}
}

// statOf is the part of /proc/PID/stat that PR_SET_MM_MAP sets.
func statOf(t *testing.T, pid int) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')'):]) // the first is the 2nd
	return bytes.Join(append(fields[26-2:28-2+1], fields[45-2:51-2+1]...), []byte(" "))
}

// A program that the swap must leave: that of a process without capabilities,
// and one that is written to on the new mount.
func TestSwapLeavesPrograms(t *testing.T) {
	t.Parallel()
	t.Run("without capabilities", func(t *testing.T) {
		t.Parallel()
		m := publicTwice(t)
		program := m.programOn(t, "program")
		p := rig.StartPuppet(t, asNobody(t), program)
		m.unchangedBy(t, p, func() {
			for _, command := range []string{"plan", "run"} {
				rig.Run(t, rig.Build(t).Swap, command, "--from", m.old, "--to", m.new).Refuses(t, itoa(p.PID), "program", "CAP_CHECKPOINT_RESTORE")
			}
		})
		p.Must(unix.SYS_GETPPID)
	})
	t.Run("written to", func(t *testing.T) {
		t.Parallel()
		m := bindfsTwice(t)
		p := rig.StartPuppet(t, m.programOn(t, "program"))
		w, err := os.OpenFile(m.new+"/program", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		fd := p.Open(m.old+"/program", unix.O_RDONLY)
		m.unchangedBy(t, p, func() {
			rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, "open for writing")
		})
		if path, dev := exe(t, p.PID); path != m.old+"/program" || dev != m.oldDev {
			t.Errorf("the program is %s on %s", path, devName(dev))
		}
		p.Close(fd)
	})
}
