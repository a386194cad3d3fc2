package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"spfs/internal/fusedev"
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
type Adopted struct {
	rec     *Record
	conn    *fusedev.Conn
	mount   *fusedev.Detached
	devices []*os.File
	pins    []pin
	stand   *standIn
	handed  bool     // nobody but the daemon answers
	unused  []unused // open on handles that nobody took
}

// Adopt makes a connection like the recorded one and mounts it, attached
// nowhere, served by a stand-in. The error wraps [ErrBadRecord] or
// [ErrKernel] if that is why.
func Adopt(ctx context.Context, rec *Record, o AdoptOptions) (*Adopted, error) {
	a, err := adopt(ctx, rec, o)
	if err != nil {
		return nil, fmt.Errorf("taking over FUSE connection %d: %w", rec.ID, err)
	}
	return a, nil
}

func adopt(ctx context.Context, rec *Record, o AdoptOptions) (_ *Adopted, err error) {
	if err := rec.Check(); err != nil {
		return nil, err
	}
	if err := adoptable(rec); err != nil {
		return nil, err
	}
	options := mountOptions(rec.Options)
	options.MountAttr = o.MountAttr
	conn, mount, err := fusedev.MountWith(options)
	if err != nil {
		return nil, err
	}
	a := &Adopted{rec: rec, conn: conn, mount: mount}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close(ctx))
		}
	}()
	own, err := conn.Clone()
	if err != nil {
		return nil, err
	}
	a.stand = standInOn(own, rec, true)
	if err := a.stand.start(); err != nil {
		return nil, err
	}
	select {
	case <-a.stand.initial:
		if err := a.stand.initErr; err != nil {
			return nil, err
		}
	case <-a.stand.failed:
		return nil, a.stand.failure()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := a.openDevices(); err != nil {
		return nil, err
	}
	if a.pins, err = pinAll(mount.File(), rec); err != nil {
		return nil, err
	}
	return a, nil
}

// adoptable says what of a record can't be had again.
func adoptable(rec *Record) error {
	if t := rec.Options.Type; t != "fuse" && !strings.HasPrefix(t, "fuse.") {
		return fmt.Errorf("%w: a mount of type %s has a block device", ErrKernel, t)
	}
	for i, h := range rec.Handles {
		if h.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0 {
			return fmt.Errorf("%w: a file of node %d is passed through to another one (FOPEN_PASSTHROUGH), which its daemon alone can open",
				ErrKernel, h.Node)
		}
		if h.Marked && h.Mapped {
			return fmt.Errorf("%w: handle %d is of a description and of none", ErrBadRecord, i)
		}
	}
	for _, n := range rec.Nodes {
		if n.ID >= FirstMadeUp && n.ID-FirstMadeUp < maxHandles {
			return fmt.Errorf("%w: node %d is one that is made up", ErrBadRecord, n.ID)
		}
	}
	return nil
}

func mountOptions(o Options) fusedev.Options {
	out := fusedev.Options{
		Source:   string(o.Source),
		RootMode: o.RootMode,
		UserID:   o.UserID, GroupID: o.GroupID,
		AllowOther:         o.AllowOther,
		DefaultPermissions: o.DefaultPermissions,
		MaxRead:            o.MaxRead,
	}
	_, out.Subtype, _ = strings.Cut(o.Type, ".")
	if o.ReadOnly {
		out.Flags = append(out.Flags, "ro")
	}
	for _, flag := range strings.Split(string(o.Super), ",") {
		switch flag {
		case "sync", "dirsync", "lazytime":
			out.Flags = append(out.Flags, flag)
		}
	}
	return out
}

// openDevices makes a description of the connection for each that there was.
func (a *Adopted) openDevices() error {
	first := 0
	for i, d := range a.rec.Devices {
		if !d.Cloned {
			first = i
			break
		}
	}
	for i, d := range a.rec.Devices {
		conn := a.conn
		if i != first {
			var err error
			if conn, err = a.conn.Clone(); err != nil {
				return err
			}
		}
		f, err := conn.File()
		if conn != a.conn {
			conn.Close() // f is another descriptor of it
		}
		if err != nil {
			return err
		}
		a.devices = append(a.devices, f)
		// After os.File was made: it does not wait for such a file by the
		// runtime's poller, and leaves the flag alone.
		if err := unix.SetNonblock(int(f.Fd()), d.Flags&unix.O_NONBLOCK != 0); err != nil {
			return fmt.Errorf("setting the flags of a FUSE device: %w", err)
		}
	}
	return nil
}

// Attach puts the mount on the directory at (or the file, if the root is one)
// in the mount namespace of the caller, for CRIU's --external mnt[KEY]:PATH.
// It is detached from there by whoever wants it to be, after the restore.
func (a *Adopted) Attach(at *os.File) error { return a.mount.Attach(at) }

// Dev is the st_dev of the mount; its minor is the connection's number.
func (a *Adopted) Dev() uint64 { return a.conn.Dev() }

// Devices are the descriptors that CRIU restores the daemon's with, by
// --inherit-fd fd[N]:KEY, one for each of Record.Devices and in their order.
// They are a's.
func (a *Adopted) Devices() []*os.File { return a.devices }

// Reduced are the INIT flags that the daemon had, that it does well without, and
// that this kernel does not offer.
func (a *Adopted) Reduced() uint64 { return a.stand.reduced }

// Failed is closed when something was asked for that the stand-in can't
// answer: what is being restored would not be what was dumped. [Adopted.Err]
// says what it was.
func (a *Adopted) Failed() <-chan struct{} { return a.stand.failed }

// Err is what the stand-in could not answer first, or nil.
func (a *Adopted) Err() error { return a.stand.failure() }

// Close gives everything back. After a HandOver it is called when the daemon
// runs: handles that nobody took are closed, which asks it. What takes longer
// than ctx allows is left to the end of this process.
func (a *Adopted) Close(ctx context.Context) error {
	// After the handover the daemon has its own descriptors. If it is gone,
	// ours must not keep the requests of what is closed below waiting.
	var errs []error
	closeDevices := func() {
		for _, f := range a.devices {
			errs = append(errs, f.Close())
		}
		a.devices = nil
		if a.conn != nil {
			errs = append(errs, a.conn.Close())
			a.conn = nil
		}
	}
	if a.handed {
		closeDevices()
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, u := range a.unused {
			u.file.Close() // an answer of the daemon's to FLUSH is not for us
		}
		for _, p := range a.pins {
			p.file.Close()
		}
		a.mount.Close()
	}()
	var timeout error
	select {
	case <-closed:
		a.unused, a.pins = nil, nil
	case <-ctx.Done():
		timeout = fmt.Errorf("closing what nobody uses of FUSE connection %d: %w", a.rec.ID, context.Cause(ctx))
	}
	if a.stand != nil && !a.handed {
		errs = append(errs, a.stand.end())
	}
	closeDevices()
	a.handed = true
	return errors.Join(append(errs, timeout)...)
}
