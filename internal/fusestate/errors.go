package fusestate

import "errors"

// ErrNoBPF says that the kernel does not let us read FUSE state: it is too
// old (Linux 5.10 is the least), has no BTF, or we lack CAP_BPF and
// CAP_PERFMON. The cause is wrapped beside it.
var ErrNoBPF = errors.New("FUSE state can't be read by BPF")

// noBPF has Load fail. It is for tests of what is done then.
const noBPF = "SPFS_TEST_NO_BPF"
