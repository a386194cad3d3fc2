package criuhook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	criu "github.com/checkpoint-restore/go-criu/v7"
	"github.com/checkpoint-restore/go-criu/v7/rpc"
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
