package proxyfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["mmap"] = mmapHelper
}

func TestFileBeyond4GiB(t *testing.T) {
	m := mount(t, Options{})
	f, err := os.Create(filepath.Join(m.mnt, "large"))
	check(t, err)
	defer f.Close()
	const at = 5<<30 + 3
	_, err = f.WriteAt([]byte("far out"), at)
	check(t, err)
	got := make([]byte, 7)
	_, err = f.ReadAt(got, at)
	check(t, err)
	if string(got) != "far out" {
		t.Errorf("read %q", got)
	}
	if size := stat(t, m.dir, "large").Size; size != at+7 {
		t.Errorf("size below is %d, want %d", size, at+7)
	}
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	check(t, err)
	if data == 0 || data > at {
		t.Errorf("data begins at %d, want a hole before %d", data, at)
	}
	check(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, 3))
	_, err = f.ReadAt(got, at)
	check(t, err)
	if string(got) != "\x00\x00\x00 out" {
		t.Errorf("after punching a hole: %q", got)
	}
}

func TestDirectIONeedsNoAlignment(t *testing.T) {
	m := mount(t, Options{})
	fd, err := unix.Open(filepath.Join(m.mnt, "f"), unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
	check(t, err)
	defer unix.Close(fd)
	data := bytes.Repeat([]byte("0123456789"), 1000)[1:]
	if n, err := unix.Pwrite(fd, data[:9001], 7); n != 9001 || err != nil {
		t.Fatalf("pwrite: %d, %v", n, err)
	}
	got := make([]byte, 9100)[1:]
	if n, err := unix.Pread(fd, got, 7); n != 9001 || err != nil || !bytes.Equal(got[:n], data[:n]) {
		t.Fatalf("pread: %d, %v", n, err)
	}
	writeFile(t, "changed behind", m.dir, "f")
	if n, err := unix.Pread(fd, got, 0); err != nil || string(got[:n]) != "changed behind" {
		t.Errorf("read %q, %v: not what is below", got[:n], err)
	}
}

func TestCopyFileRange(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "0123456789", m.dir, "from")
	from, err := os.Open(filepath.Join(m.mnt, "from"))
	check(t, err)
	defer from.Close()
	to, err := os.Create(filepath.Join(m.mnt, "to"))
	check(t, err)
	defer to.Close()
	in, out := int64(2), int64(3)
	n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, 100, 0)
	if n != 8 || err != nil {
		t.Fatalf("copied %d, %v", n, err)
	}
	wantFile(t, "\x00\x00\x0023456789", m.dir, "to")
	wantFile(t, "\x00\x00\x0023456789", m.mnt, "to")
}

// Programs append on both sides at once: nothing is overwritten.
func TestAppendGoesToTheEndBelow(t *testing.T) {
	m := mount(t, Options{})
	const flags = os.O_APPEND | os.O_CREATE | os.O_WRONLY
	a, err := os.OpenFile(filepath.Join(m.mnt, "log"), flags, 0o644)
	check(t, err)
	defer a.Close()
	b, err := os.OpenFile(filepath.Join(m.dir, "log"), flags, 0o644)
	check(t, err)
	defer b.Close()
	want := ""
	for i := 0; i < 50; i++ {
		for _, f := range []*os.File{a, b} {
			line := fmt.Sprintf("%d %s\n", i, f.Name())
			_, err := f.WriteString(line)
			check(t, err)
			want += line
		}
	}
	wantFile(t, want, m.dir, "log")
	wantFile(t, want, m.mnt, "log")
}

func TestOpenUnlinkedFile(t *testing.T) {
	m := mount(t, Options{})
	path := filepath.Join(m.mnt, "f")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	check(t, err)
	defer f.Close()
	check(t, os.Remove(path))
	checkUnlinked(t, f)
	if err := unix.Linkat(unix.AT_FDCWD, procPath(int(f.Fd())), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != unix.ENOENT {
		t.Errorf("linkat of a deleted file: %v, want ENOENT as everywhere", err)
	}
}

// checkUnlinked uses an open file of mode 0640 that has no name.
func checkUnlinked(t *testing.T, f *os.File) {
	t.Helper()
	_, err := f.WriteAt([]byte("still here"), 0)
	check(t, err)
	check(t, f.Truncate(5))
	got := make([]byte, 20)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "still" {
		t.Errorf("read %q", got[:n])
	}
	check(t, f.Chmod(0o600))
	var st unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 || st.Size != 5 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("nlink %d, size %d, mode %o", st.Nlink, st.Size, st.Mode)
	}
}

func TestTmpfileGetsAName(t *testing.T) {
	m := mount(t, Options{})
	fd, err := unix.Open(m.mnt, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	check(t, err)
	f := os.NewFile(uintptr(fd), "tmpfile")
	defer f.Close()
	checkUnlinked(t, f)
	other := openTemp(t)
	check(t, unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, filepath.Join(m.mnt, "named"), unix.AT_SYMLINK_FOLLOW))
	wantFile(t, "still", m.dir, "named")

	writeFile(t, "found by its name", other, "named")
	m.retarget(t, other)
	got := make([]byte, 20)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "found by its name" {
		t.Errorf("read %q", got[:n])
	}
}

func TestTimes(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "", m.dir, "f")
	path := filepath.Join(m.mnt, "f")
	set := func(atime, mtime unix.Timespec) unix.Stat_t {
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{atime, mtime}, 0))
		return stat(t, path)
	}
	past := unix.Timespec{Sec: -5, Nsec: 123456789}
	if st := set(past, unix.Timespec{Sec: 7}); st.Atim != past || st.Mtim.Sec != 7 {
		t.Errorf("atime %v, mtime %v", st.Atim, st.Mtim)
	}
	if st := set(unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}); st.Atim != past || st.Mtim.Sec < 1e9 {
		t.Errorf("omitted atime %v, mtime now %v", st.Atim, st.Mtim)
	}
	var stx unix.Statx_t
	check(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &stx))
	if stx.Mask&unix.STATX_BTIME == 0 || stx.Btime.Sec < 1e9 {
		t.Errorf("no time of birth: mask %#x, %v", stx.Mask, stx.Btime)
	}
}

// A shared writable mapping and read(2), on the mount and below, are one file.
func TestSharedMappingIsCoherent(t *testing.T) {
	m := mount(t, Options{})
	runHelper(t, "mmap", filepath.Join(m.mnt, "f"), filepath.Join(m.dir, "f"))
}

// mmapHelper is another process because a page fault that waits for a server in
// its own process may wait for itself: the Go runtime does not know that the
// thread is blocked.
func mmapHelper(args []string) error {
	const size = 3 * 4096
	f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	copy(mem[4090:], "across pages")
	got := make([]byte, 12)
	if _, err := f.ReadAt(got, 4090); err != nil || string(got) != "across pages" {
		return fmt.Errorf("read %q, %v, want what was stored", got, err)
	}
	if _, err := f.WriteAt([]byte("WRITTEN"), 8000); err != nil {
		return err
	}
	if got := string(mem[8000:8007]); got != "WRITTEN" {
		return fmt.Errorf("the mapping has %q, want what was written", got)
	}
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	below, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	if !bytes.Equal(below, mem) {
		return fmt.Errorf("the file below has %q…, the mapping %q…", below[4090:4102], mem[4090:4102])
	}

	// What comes from the page cache goes where it belongs, even through
	// a file open for appending, the only one left that can be written to.
	app, err := os.OpenFile(args[0], os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer app.Close()
	f.Close()
	mem[100] = 'x'
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync through an appending file: %w", err)
	}
	if below, err = os.ReadFile(args[1]); err != nil || len(below) != size || below[100] != 'x' {
		return fmt.Errorf("the file below has %d bytes, want %d: %v", len(below), size, err)
	}
	return unix.Munmap(mem)
}

func TestUnknownIoctl(t *testing.T) {
	m := mount(t, Options{})
	f, err := os.Create(filepath.Join(m.mnt, "f"))
	check(t, err)
	defer f.Close()
	var arg uint64
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, f.Fd(), 0x5350, uintptr(unsafe.Pointer(&arg)))
	if errno != unix.ENOTTY {
		t.Errorf("ioctl: %v, want ENOTTY", errno)
	}
}

func TestSectionCoversEveryByteOnce(t *testing.T) {
	bufs := [][]byte{[]byte("abc"), nil, []byte("d"), []byte("efgh")}
	const all = "abcdefgh"
	for from := 0; from <= len(all); from++ {
		for to := from; to <= len(all); to++ {
			if got := string(bytes.Join(section(bufs, from, to), nil)); got != all[from:to] {
				t.Errorf("section %d to %d is %q, want %q", from, to, got, all[from:to])
			}
		}
	}
}
