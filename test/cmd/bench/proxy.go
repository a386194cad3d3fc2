package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// work is one thing done in a directory. It returns how many units it did.
type work struct {
	name, unit string
	do         func(dir string) (int, error)
}

const (
	block    = 128 << 10
	bigFile  = 256 << 20
	small    = 4 << 10
	rereads  = 20000
	manyFile = 2000
)

var works = []work{
	{"write, 128 KiB blocks", "MiB", writeBig},
	{"read, 128 KiB blocks", "MiB", readBig},
	{"read, 4 KiB at random", "reads", readSmall},
	{"create, write, close", "files", createMany},
	{"stat", "stats", statMany},
	{"list and stat", "entries", listMany},
	{"rename", "renames", renameMany},
	{"unlink", "unlinks", unlinkMany},
}

// proxy measures every work in the bare directory, through bindfs and through
// spfs, one after the other, and prints what each did in a second.
func proxy(t rig.T) {
	top := rig.Dir(t)
	dirs := map[string]string{}
	for _, name := range []string{"bare", "bindfs-data", "spfs-data", "bindfs", "spfs"} {
		dirs[name] = rig.Mkdir(t, top, name)
	}
	rig.Bindfs(t, dirs["bindfs-data"], dirs["bindfs"])
	rig.Mount(t, dirs["spfs"], "--mode", "proxy", "--dir", dirs["spfs-data"])

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "a second\tbare\tbindfs\tspfs proxy\tproxy : bare\tproxy : bindfs\t")
	for _, x := range works {
		rate := map[string]float64{}
		for _, where := range []string{"bare", "bindfs", "spfs"} {
			began := time.Now()
			n, err := x.do(dirs[where])
			if err != nil {
				t.Fatalf("%s on %s: %v", x.name, where, err)
			}
			rate[where] = float64(n) / time.Since(began).Seconds()
		}
		fmt.Fprintf(w, "%s (%s)\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t\n", x.name, x.unit, rate["bare"], rate["bindfs"], rate["spfs"],
			rate["spfs"]/rate["bare"], rate["spfs"]/rate["bindfs"])
	}
	w.Flush()
}

func writeBig(dir string) (int, error) {
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, block)
	for range bigFile / block {
		if _, err := f.Write(b); err != nil {
			return 0, err
		}
	}
	return bigFile >> 20, f.Sync()
}

// forget drops a file's pages from the cache of the file system asked, so that
// what is read next comes from its daemon.
func forget(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func readBig(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := forget(f); err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{f}, make([]byte, block))
	if err == nil && n != bigFile {
		err = fmt.Errorf("%d bytes read", n)
	}
	return bigFile >> 20, err
}

// These keep io.CopyBuffer from finding ways around the buffer.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func readSmall(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := errors.Join(forget(f), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)); err != nil {
		return 0, err
	}
	b := make([]byte, small)
	for i := range rereads {
		at := int64(i) * 7919 % (bigFile / small) * small
		if _, err := f.ReadAt(b, at); err != nil {
			return 0, err
		}
	}
	return rereads, nil
}

func name(dir, kind string, i int) string { return filepath.Join(dir, fmt.Sprintf("%s-%d", kind, i)) }

func createMany(dir string) (int, error) {
	for i := range manyFile {
		if err := os.WriteFile(name(dir, "f", i), []byte("content"), 0o644); err != nil {
			return 0, err
		}
	}
	return manyFile, nil
}

func statMany(dir string) (int, error) {
	var st unix.Stat_t
	for i := range manyFile {
		if err := unix.Stat(name(dir, "f", i), &st); err != nil {
			return 0, err
		}
	}
	return manyFile, nil
}

func listMany(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			return 0, err
		}
	}
	if len(entries) < manyFile {
		return 0, fmt.Errorf("%d entries", len(entries))
	}
	return len(entries), nil
}

func renameMany(dir string) (int, error) {
	for i := range manyFile {
		if err := os.Rename(name(dir, "f", i), name(dir, "g", i)); err != nil {
			return 0, err
		}
	}
	return manyFile, nil
}

func unlinkMany(dir string) (int, error) {
	for i := range manyFile {
		if err := os.Remove(name(dir, "g", i)); err != nil {
			return 0, err
		}
	}
	return manyFile, nil
}
