package criuhook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"spfs/test/rig"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// What a CRIU that was killed leaves holds the socket, and would be waited for.
func TestCRIUThatDiesIsNotWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 1000 &\nkill -KILL $$\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	o, err := openOrphanage()
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	p := &program{path: path, orphans: o.kill}
	err = p.do(&rpc.CriuReq{Type: rpc.CriuReqType_DUMP.Enum(), Opts: new(rpc.CriuOpts)}, criu.NoNotify{})
	if err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("it is %v, want that it was killed", err)
	}
	if err := o.empty(); err != nil {
		t.Error(err)
	}
}

// A tree with tens of thousands of open files makes a request of a megabyte.
func TestCRIUIsToldOfManyFiles(t *testing.T) {
	path := filepath.Join(rig.Checkout, "bin", "criu")
	request := &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum(), Opts: &rpc.CriuOpts{ImagesDirFd: proto.Int32(-1)}}
	for i := range 50000 {
		request.Opts.External = append(request.Opts.External, fmt.Sprintf("file[%x:%x]", 1000+i%7, 10000000+i))
	}
	c, err := startSwrk(path, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.converse(request, criu.NoNotify{}), c.end()); err != nil {
		t.Error(err)
	}
}
