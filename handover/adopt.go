package handover

import (
	"context"
	"errors"
	"os"

	"spfs/internal/bytetext"
)

// ErrKernel: the kernel can't give the daemon what it had negotiated, or can't
// do what a restore by handover needs.
var ErrKernel = errors.New("this kernel can't take the FUSE connection over")

// AdoptOptions says how [Adopt] makes a connection.
type AdoptOptions struct {
	// MountAttr are MOUNT_ATTR_ flags of the mount that is made; the mounts
	// of the restored tree have their own.
	MountAttr uint64
}

// Adopted is a new connection with everything the old one had: the mount, the
// nodes by their numbers, and the handles. A stand-in answers it until
// [Adopted.HandOver]. Its methods are for one goroutine at a time.
type Adopted struct{ _ struct{} }

// Adopt makes a connection like the recorded one and mounts it, attached
// nowhere, served by a stand-in. The error wraps [ErrBadRecord] or
// [ErrKernel] if that is why.
func Adopt(ctx context.Context, rec *Record, o AdoptOptions) (*Adopted, error) {
	return nil, errors.ErrUnsupported
}

// Attach puts the mount on the directory at (or the file, if the root is one)
// in the mount namespace of the caller, for CRIU's --external mnt[KEY]:PATH.
// It is detached from there by whoever wants it to be, after the restore.
func (a *Adopted) Attach(at *os.File) error { return errors.ErrUnsupported }

// Dev is the st_dev of the mount; its minor is the connection's number.
func (a *Adopted) Dev() uint64 { return 0 }

// Devices are the descriptors that CRIU restores the daemon's with, by
// --inherit-fd fd[N]:KEY, one for each of Record.Devices and in their order.
// They are a's.
func (a *Adopted) Devices() []*os.File { return nil }

// Nameless is a file that no name leads to, which CRIU gets by --inherit-fd.
type Nameless struct {
	Node uint64
	Was  bytetext.Text // its last name, or one that was made up

	// File is a descriptor of it, O_PATH: CRIU opens it again by itself, as
	// often as it was open. It is the Adopted's.
	File *os.File
}

// Nameless are the unlinked files of the record.
func (a *Adopted) Nameless() []Nameless { return nil }

// Failed is closed when something was asked for that the stand-in can't
// answer: what is being restored would not be what was dumped. [Adopted.Err]
// says what it was.
func (a *Adopted) Failed() <-chan struct{} { return nil }

// Err is what the stand-in could not answer first, or nil.
func (a *Adopted) Err() error { return errors.ErrUnsupported }

// HandOver is called when everything that is restored is open and nothing of
// it runs yet (CRIU's post-restore), and the daemon has its descriptors. When
// it returns without an error, the kernel has of each node and handle what the
// daemon gave and nothing made up, and only the daemon reads the connection.
// If it returns an error, the restore must be given up: the stand-in answers
// on, so that what hangs on the mount can be killed, until Close.
func (a *Adopted) HandOver(ctx context.Context) error { return errors.ErrUnsupported }

// Close gives everything back. After a HandOver it is called when the daemon
// runs: handles that nobody took are closed, which asks it. What takes longer
// than ctx allows is left to the end of this process.
func (a *Adopted) Close(ctx context.Context) error { return errors.ErrUnsupported }
