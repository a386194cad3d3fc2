package criuhook

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Every CRIU checkpoint has this image.
const inventory = "inventory.img"

// castagnoli is computed by the processor at memory speed, so that gigabytes
// of pages may be checked too. It detects any single changed byte; it is no
// signature, and need not be: who may write the images may write a manifest.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// imageNames lists the image files of a directory, sorted.
func imageNames(dir *os.File) ([]string, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir.Name(), err)
	}
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir.Name(), err)
	}
	var names []string
	for _, n := range all {
		if strings.HasSuffix(n, ".img") {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names, nil
}

// sealImages identifies every image of a directory as it is now.
func sealImages(dir *os.File) ([]Image, error) {
	names, err := imageNames(dir)
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(names))
	buf := make([]byte, sealBuffer)
	for _, n := range names {
		i, err := sealImage(dir, n, buf)
		if err != nil {
			return nil, err
		}
		images = append(images, i)
	}
	return images, nil
}

// sealBuffer is how much of an image is read at once.
const sealBuffer = 256 << 10

func sealImage(dir *os.File, name string, buf []byte) (Image, error) {
	f, err := openIn(dir, name, unix.O_RDONLY)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	size, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
	if err != nil {
		return Image{}, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return Image{Name: name, Size: size, CRC: h.Sum32()}, nil
}

// checkImages returns an error that names the first image of the manifest
// which is not the one it was written for.
func (m *Manifest) checkImages(dir *os.File) error {
	buf := make([]byte, sealBuffer)
	for _, want := range m.Images {
		got, err := sealImage(dir, want.Name, buf)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("image %s/%s is missing", dir.Name(), want.Name)
		case err != nil:
			return err
		case got.Size < want.Size:
			return fmt.Errorf("image %s/%s is cut short: %d of %d bytes", dir.Name(), want.Name, got.Size, want.Size)
		case got != want:
			return fmt.Errorf("image %s/%s is not the one that was dumped: its content has changed", dir.Name(), want.Name)
		}
	}
	return nil
}

// statistics is a file that CRIU writes when the dump is over.
const statistics = "stats-dump"

// sealStatistics adds CRIU's statistics to a manifest that is written already.
// Nothing is lost if it cannot be done: no restore reads them.
func (m *Manifest) sealStatistics(dir *os.File) {
	i, err := sealImage(dir, statistics, make([]byte, sealBuffer))
	if err != nil {
		return
	}
	with := *m
	with.Images = append(m.Images[:len(m.Images):len(m.Images)], i)
	if with.write(dir) == nil {
		*m = with
	}
}
