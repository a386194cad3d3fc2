package criuhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/handover"
	"spfs/internal/bytetext"
)

// ManifestName is the manifest's file in the image directory.
const ManifestName = "spfs.manifest"

// manifestVersion grows with every change that an older spfs would read
// wrongly. A manifest is written in the oldest version that can hold it.
//
//	1  file systems whose daemons are outside the tree
//	2  and those whose daemons are in the tree
const manifestVersion = 2

// maxManifest bounds what is read into memory: half a million open files of
// long names need less.
const maxManifest = 256 << 20

var (
	// ErrNoManifest: the image directory holds no manifest.
	ErrNoManifest = errors.New("no " + ManifestName + " in the image directory")
	// ErrNewerManifest: written by an spfs newer than this one.
	ErrNewerManifest = errors.New("written by a newer spfs")
	// ErrBadManifest: not what was once written.
	ErrBadManifest = errors.New("damaged")
)

// Manifest is what SPFS adds to CRIU's images: what CRIU leaves out about the
// FUSE file systems of a tree, and what must be there when it opens files.
type Manifest struct {
	// Images are the files of the image directory this manifest was written
	// for.
	Images []Image `json:"images"`

	// HostNamespace tells that the tree had no mount namespace of its own:
	// its mount points are the machine's, and CRIU restores no mount.
	HostNamespace bool `json:"host_namespace,omitempty"`

	// IgnoreCgroups tells that the images were made while the tree was in a
	// cgroup of the dump's own, so that the restored one belongs where who
	// restores it is.
	IgnoreCgroups bool `json:"ignore_cgroups,omitempty"`

	FileSystems []FileSystem `json:"file_systems"`
}

// Image identifies one image file.
type Image struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	CRC  uint32 `json:"crc32c"` // Castagnoli, of the whole file
}

// FileSystem is one FUSE superblock of the tree.
type FileSystem struct {
	Type    string  `json:"type"`    // as in mountinfo: "fuse", "fuse.sshfs" …
	Source  Text    `json:"source"`  // as in mountinfo
	Options Text    `json:"options"` // of the superblock, as in mountinfo
	Mounts  []Mount `json:"mounts"`  // at least one
	Nodes   []Node  `json:"nodes"`   // by path; every node's parents are nodes too

	// Record, if not nil, is of the connection to a daemon that is in the
	// tree: there are no Nodes then.
	Record *handover.Record `json:"record,omitempty"`
}

// Mount is one place where a FUSE file system is mounted in the tree.
type Mount struct {
	Key   string `json:"key"`   // K of CRIU's --external mnt[…]:K; empty with HostNamespace
	Point Text   `json:"point"` // from the tree's root
	Root  Text   `json:"root"`  // what of the file system it shows
	Flags Text   `json:"flags"` // of this mount, as in mountinfo: "rw,nosuid,nodev"
}

// Node is a file of a FUSE file system that CRIU will look up.
type Node struct {
	Path   Text     `json:"path"` // from the file system's root, starting with "/"
	Mode   uint32   `json:"mode"` // st_mode: type and permissions
	Size   int64    `json:"size,omitempty"`
	UID    uint32   `json:"uid,omitempty"`
	GID    uint32   `json:"gid,omitempty"`
	Rdev   uint64   `json:"rdev,omitempty"`
	Atime  Time     `json:"atime"`
	Mtime  Time     `json:"mtime"`
	Target Text     `json:"target,omitempty"` // of a symbolic link
	Seen   []Dirent `json:"seen,omitempty"`   // of a directory that is open beyond its start
}

// Dirent is an entry that a task has read of a directory, or may have: the
// directory's entries from the first to the highest position at which the
// tree has it open.
type Dirent struct {
	Name   Text  `json:"name"`
	Cookie int64 `json:"cookie"` // the position after this entry: getdents64's d_off
}

// Time is a time stamp: seconds and nanoseconds since 1970.
type Time [2]int64

// Text is a byte string of the kernel's, which need not be UTF-8.
type Text = bytetext.Text

// The file is one line of text, then JSON:
//
//	spfs-manifest VERSION LENGTH SHA256\n
//
// LENGTH is the JSON's in bytes, SHA256 is of "VERSION LENGTH\n" and the JSON.
const manifestMagic = "spfs-manifest"

func manifestSum(version, length int, body []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d %d\n", version, length)
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// Encode returns the manifest as a file's content.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	body = append(body, '\n')
	version := m.version()
	head := fmt.Sprintf("%s %d %d %s\n", manifestMagic, version, len(body), manifestSum(version, len(body), body))
	if len(head)+len(body) > maxManifest {
		return nil, fmt.Errorf("manifest: %d bytes, more than the %d that are read back", len(head)+len(body), maxManifest)
	}
	return append([]byte(head), body...), nil
}

// version is the oldest version that can hold m.
func (m *Manifest) version() int {
	if m.IgnoreCgroups || slices.ContainsFunc(m.FileSystems, func(fs FileSystem) bool { return fs.Record != nil }) {
		return 2
	}
	return 1
}

// DecodeManifest is the inverse of [Manifest.Encode]. It trusts nothing: what
// it returns has clean absolute paths, a parent for every node, and only
// kinds of files that are safe to make. Its errors wrap [ErrNewerManifest] or
// [ErrBadManifest].
func DecodeManifest(b []byte) (*Manifest, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrBadManifest, fmt.Sprintf(format, args...))
	}
	line, body, found := bytes.Cut(b, []byte("\n"))
	words := strings.Split(string(line), " ")
	if words[0] != manifestMagic || !found {
		return nil, bad("it does not start as a manifest does")
	}
	if len(words) < 2 {
		return nil, bad("its first line is cut short")
	}
	version, err := strconv.Atoi(words[1])
	if err != nil || version < 1 || strconv.Itoa(version) != words[1] {
		return nil, bad("%q is not a version", words[1])
	}
	if version > manifestVersion {
		return nil, fmt.Errorf("%w: version %d, and this one knows %d", ErrNewerManifest, version, manifestVersion)
	}
	if len(words) != 4 {
		return nil, bad("its first line has %d words, not 4", len(words))
	}
	length, err := strconv.Atoi(words[2])
	if err != nil || strconv.Itoa(length) != words[2] {
		return nil, bad("%q is not a length", words[2])
	}
	switch {
	case len(body) < length:
		return nil, bad("cut short: %d of %d bytes", len(body), length)
	case len(body) > length:
		return nil, bad("%d bytes too long", len(body)-length)
	}
	if manifestSum(version, length, body) != words[3] {
		return nil, bad("its content does not match its checksum")
	}

	m := new(Manifest)
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, bad("%v", err)
	}
	if m.version() > version {
		return nil, bad("it holds what version %d has, and is of version %d", m.version(), version)
	}
	if err := m.check(); err != nil {
		return nil, bad("%v", err)
	}
	return m, nil
}

// ReadManifest reads the manifest of an image directory.
func ReadManifest(dir *os.File) (*Manifest, error) {
	f, err := openIn(dir, ManifestName, unix.O_RDONLY|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: either \"spfs dump\" did not write it, or it is not whole", dir.Name(), ErrNoManifest)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%s: %w: larger than %d bytes", f.Name(), ErrBadManifest, maxManifest)
	}
	m, err := DecodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return m, nil
}

// write puts the manifest into the image directory, whole or not at all.
func (m *Manifest) write(dir *os.File) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	const temporary = ManifestName + ".new"
	f, err := openIn(dir, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temporary, int(dir.Fd()), ManifestName)
	}
	if err != nil {
		unix.Unlinkat(int(dir.Fd()), temporary, 0)
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	return nil
}

// openIn opens a file of a directory by its name there.
func openIn(dir *os.File, name string, flags int) (*os.File, error) {
	full := path.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}
