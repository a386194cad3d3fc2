package handover

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon is stopped while others look at its mount, and goes on.
func TestStandInForADump(t *testing.T) {
	rec := tree()
	d := daemonOf(t, rec)
	a, dir := adopted(t, rec)
	if err := a.HandOver(limit(t)); err != nil {
		t.Fatal(err)
	}
	device, err := a.conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := unix.SetNonblock(int(device.Fd()), true); err != nil {
		t.Fatal(err)
	}
	d.serve(device)
	// What the kernel has cached is the daemon's, and a file is open.
	client, err := openFile(dir+"/dir/more", unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	d.pause()
	moreFH := d.next

	clone, err := a.conn.Clone()
	if err != nil {
		t.Fatal(err)
	}
	s := standInOn(clone, rec, false)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	lookup(t, dir+"/dir/file")
	if b := make([]byte, 4096); true {
		f, err := openFile(dir+"/dir/file", unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b[:n], contentOf(nodeFile, 0, 4096)) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		f.Close()
	}
	if _, err := os.Stat(dir + "/dir/unrecorded"); !errors.Is(err, unix.EIO) {
		t.Errorf("a name that was not recorded: %v", err)
	}
	// A process dies: its file is closed, and the daemon does not hear yet.
	client.Close()
	if err := s.await(limit(t), func() bool { return s.kept == 1 }); err != nil {
		t.Error(err)
	}
	if err := s.awaitReleased(limit(t)); err != nil {
		t.Error(err)
	}
	done, err := s.endDump()
	if err != nil {
		t.Error(err)
	}
	d.mu.Lock()
	for node, n := range done.lookups { // as who ends the dump would
		d.nodes[node].lookups += n
	}
	d.mu.Unlock()
	if done.lookups[nodeFile] != 1 || len(done.forgotten) != 0 {
		t.Errorf("looked up %v, forgotten %v", done.lookups, done.forgotten)
	}
	d.serve(device)
	if _, err := os.Stat(dir + "/dir/more"); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(5 * time.Second); d.has(nodeMore, moreFH); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the daemon never heard that a file was closed")
			break
		}
	}
	d.check()
	if err := a.Close(limit(t)); err != nil {
		t.Error(err)
	}
	shrink(t, dir)
	d.nothingLeft()
	d.check()
	unix.Unmount(dir, unix.MNT_DETACH)
	<-d.done
}

// lookup has every name of the path looked up, once the daemon's have expired.
func lookup(t *testing.T, path string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := openFile(path, unix.O_PATH)
		switch {
		case err == nil:
			f.Close()
			return
		case time.Now().After(end):
			t.Fatal(err)
		}
	}
}

func TestWriteFailsADump(t *testing.T) {
	rec := tree()
	a, dir := adopted(t, rec)
	if err := a.HandOver(limit(t)); err != nil {
		t.Fatal(err)
	}
	clone, err := a.conn.Clone()
	if err != nil {
		t.Fatal(err)
	}
	s := standInOn(clone, rec, false)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(dir+"/dir/more", unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	<-s.failed
	if err := s.failure(); err == nil || !strings.Contains(err.Error(), "WRITE of node 12") {
		t.Errorf("the failure is %v", err)
	}
	f.Close()
	unix.Unmount(dir, unix.MNT_DETACH)
	if _, err := s.endDump(); err != nil {
		t.Error(err)
	}
}
