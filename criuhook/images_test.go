package criuhook

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// image builds an image file out of entries.
func image(kind uint32, entries ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, magicCommon)
	b = binary.LittleEndian.AppendUint32(b, kind)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e)))
		b = append(b, e...)
	}
	return b
}

func TestReadImage(t *testing.T) {
	whole := image(magicFiles, []byte("one"), nil, []byte("three"))
	var got []string
	add := func(b []byte) error { got = append(got, string(b)); return nil }
	if err := readImage(bytes.NewReader(whole), magicFiles, add); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, ","); s != "one,,three" {
		t.Errorf("entries %q", s)
	}
	for name, b := range map[string][]byte{
		"empty":         nil,
		"head cut":      whole[:7],
		"length cut":    whole[:10],
		"entry cut":     whole[:len(whole)-1],
		"other kind":    image(magicMounts),
		"no image":      []byte("#!/bin/sh\necho"),
		"endless entry": append(image(magicFiles), 0xff, 0xff, 0xff, 0xff),
	} {
		if err := readImage(bytes.NewReader(b), magicFiles, add); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzReadImage(f *testing.F) {
	e, err := proto.Marshal(&mnt.MntEntry{
		Fstype: proto.Uint32(15), MntId: proto.Uint32(1), RootDev: proto.Uint32(2), ParentMntId: proto.Uint32(3), Flags: proto.Uint32(0),
		Root: proto.String("/"), Mountpoint: proto.String("/mnt"), Source: proto.String("s"), Options: proto.String("o"),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image(magicMounts, e))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(mnt.MntEntry)
		total := 0
		_ = readImage(bytes.NewReader(b), magicMounts, func(e []byte) error {
			total += len(e)
			return proto.Unmarshal(e, m)
		})
		if total > len(b) {
			t.Errorf("%d bytes of entries out of %d", total, len(b))
		}
	})
}

func TestKernelDev(t *testing.T) {
	for kernel, want := range map[uint32]uint64{
		39:              unix.Mkdev(0, 39),
		254<<20 | 1:     unix.Mkdev(254, 1),
		0<<20 | 1048575: unix.Mkdev(0, 1048575),
	} {
		if got := kernelDev(kernel); got != want {
			t.Errorf("%#x became %#x, want %#x", kernel, got, want)
		}
	}
}
