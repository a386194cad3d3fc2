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
	if done.lookups[nodeFile] == 0 || len(done.forgotten) != 0 {
		t.Errorf("looked up %v, forgotten %v", done.lookups, done.forgotten)
	}
	d.serve(device)
	if _, err := os.Stat(dir + "/dir/more"); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(20 * time.Second); d.has(nodeMore, moreFH); time.Sleep(time.Millisecond) {
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
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
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

// What the daemon does not give it must not be asked to forget. Names that
// somebody uses stay as they are all the same.
func TestLookupFailsADumpOfWhatGoesOn(t *testing.T) {
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
	client, err := openFile(dir+"/dir/more", unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	d.pause()
	clone, err := a.conn.Clone()
	if err != nil {
		t.Fatal(err)
	}
	s := standInOn(clone, rec, false)
	s.strict = true
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if err := s.conn.ExpireEntry(nodeDir, "more"); err != nil {
		t.Error(err)
	}
	if err := s.conn.ExpireEntry(RootID, "dir"); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/dir/more", &st); err != unix.ENOMEM {
		t.Errorf("a name was found: %v", err)
	}
	if err := s.failure(); err == nil || !strings.Contains(err.Error(), "which goes on, knows of") {
		t.Errorf("the failure is %v", err)
	}
	told, err := s.endDump()
	if err != nil || len(told.lookups) != 0 {
		t.Errorf("looked up %v, %v", told.lookups, err)
	}
	d.serve(device)
	if got := link(t, int(client.Fd())); got != dir+"/dir/more" {
		t.Errorf("the open file is shown as %s", got)
	}
	client.Close()
	a.Close(limit(t))
	shrink(t, dir)
	d.nothingLeft()
	d.check()
	unix.Unmount(dir, unix.MNT_DETACH)
	d.pause()
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
