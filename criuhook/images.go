package criuhook

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The first word of an image, and the second, which tells its kind
// (include/magic.h of CRIU).
const (
	magicCommon = 0x54564319
	magicFiles  = 0x56303138
	magicMounts = 0x55563928
)

// maxEntry bounds one entry of an image. The largest that are read here are a
// path and a few numbers, or one mount's options.
const maxEntry = 1 << 20

// readImage calls add with every entry of the image, in order.
func readImage(r io.Reader, kind uint32, add func([]byte) error) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return errors.New("not an image: shorter than its head")
	}
	if got := binary.LittleEndian.Uint32(head[:4]); got != magicCommon {
		return fmt.Errorf("not an image: it starts with %#x", got)
	}
	if got := binary.LittleEndian.Uint32(head[4:]); got != kind {
		return fmt.Errorf("image of kind %#x instead of %#x", got, kind)
	}
	for {
		var size [4]byte
		switch _, err := io.ReadFull(r, size[:]); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("cut short: %w", err)
		}
		n := binary.LittleEndian.Uint32(size[:])
		if n > maxEntry {
			return fmt.Errorf("an entry of %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("cut short: %w", err)
		}
		if err := add(b); err != nil {
			return err
		}
	}
}

// eachEntry decodes every entry of an image file into m and calls add.
func eachEntry(dir *os.File, name string, kind uint32, m proto.Message, add func()) error {
	f, err := openIn(dir, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	err = readImage(bufio.NewReaderSize(f, 1<<16), kind, func(b []byte) error {
		proto.Reset(m)
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		add()
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// imageMount is a mount as CRIU dumped it.
type imageMount struct {
	id, parent int
	dev        uint64 // st_dev
	fuse       bool
	root       string
	point      string // from its namespace's root
	key        string // of --external; empty if CRIU restores it itself
	source     string
	options    string
}

// imageFile is a file that CRIU opens by name at restore.
type imageFile struct {
	mount int // id; -1 where the tree had no mount namespace
	path  string
	flags int
	pos   int64
	size  int64  // -1 if CRIU does not check it
	mode  uint32 // 0 if CRIU does not check it
	bound bool   // a Unix socket bound to the path: CRIU makes it itself
}

// readMounts reads the mounts of every mount namespace of the tree. A tree
// without one of its own has none in its images.
func readMounts(dir *os.File) ([]imageMount, error) {
	names, err := imageNames(dir)
	if err != nil {
		return nil, err
	}
	var mounts []imageMount
	for _, name := range names {
		if !strings.HasPrefix(name, "mountpoints-") {
			continue
		}
		m := new(mnt.MntEntry)
		err := eachEntry(dir, name, magicMounts, m, func() {
			mounts = append(mounts, imageMount{
				id:      int(m.GetMntId()),
				parent:  int(m.GetParentMntId()),
				dev:     kernelDev(m.GetRootDev()),
				fuse:    m.GetFstype() == uint32(mnt.Fstype_FUSE),
				root:    m.GetRoot(),
				point:   m.GetMountpoint(),
				key:     m.GetExtKey(),
				source:  m.GetSource(),
				options: m.GetOptions(),
			})
		})
		if err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

// kernelDev turns the kernel's own dev_t (20 bits of minor, kdev_t.h), which
// is what CRIU stores, into user space's.
func kernelDev(d uint32) uint64 { return unix.Mkdev(d>>20, d&(1<<20-1)) }

// readFiles reads what of the tree's open files CRIU opens by name: files,
// directories, FIFOs, what is mapped, executed, cwd and root.
func readFiles(dir *os.File) ([]imageFile, error) {
	var files []imageFile
	e := new(fdinfo.FileEntry)
	err := eachEntry(dir, "files.img", magicFiles, e, func() {
		switch {
		case e.Reg != nil:
			f := imageFile{
				mount: int(e.Reg.GetMntId()),
				path:  e.Reg.GetName(),
				flags: int(e.Reg.GetFlags()),
				pos:   int64(e.Reg.GetPos()),
				size:  -1,
				mode:  e.Reg.GetMode(),
			}
			if e.Reg.Size != nil {
				f.size = int64(e.Reg.GetSize())
			}
			files = append(files, f)
		case e.Usk != nil:
			// The name of an abstract socket starts with a zero.
			name := strings.TrimSuffix(string(e.Usk.GetName()), "\x00")
			if strings.HasPrefix(name, "/") {
				files = append(files, imageFile{mount: int(e.Usk.GetMntId()), path: name, size: -1, bound: true})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}
