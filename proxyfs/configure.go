package proxyfs

import "github.com/hanwen/go-fuse/v2/fuse"

// Capabilities are what the connection should negotiate beyond go-fuse's
// defaults:
//
//   - ATOMIC_O_TRUNC: open truncates by itself, one request less;
//   - DONT_MASK: the umask does not hold where a default ACL does, which only
//     the file system below can tell;
//   - HANDLE_KILLPRIV_V2: set-id bits and file capabilities fall with the
//     write itself. Without it the kernel asks for security.capability before
//     each write (fs/fuse/file.c, file_remove_privs);
//   - SETXATTR_EXT: says when a new ACL must drop the set-group-id bit.
const Capabilities = fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK |
	fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT

// Configure sets in o what a connection that serves an FS needs: locks and
// ACLs forwarded, [Capabilities], large requests, no READDIRPLUS (whose
// answers are worth nothing when nothing may be cached). The mount itself
// needs default_permissions.
func Configure(o *fuse.MountOptions) {
	o.EnableLocks = true
	o.EnableAcl = true
	o.ExtraCapabilities |= Capabilities
	o.DisableReadDirPlus = true
	o.MaxWrite = 1 << 20
	o.MaxBackground = 64
}
