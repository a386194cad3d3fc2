package swap

import (
	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// tryDirectories is changeDirectories where there is no way back: fchdir into a
// directory of a silent mount would ask its daemon (fs/fuse/dir.c,
// fuse_permission). So the directories are changed after the verdict; whether
// the process may is found out before.
func (p *program) tryDirectories(j *job, root, cwd ptrace.Ref) {
	nothing := p.String("")
	try := func(fd ptrace.Ref) {
		p.Syscall(unix.SYS_FACCESSAT2, fd.Int32(), nothing, ptrace.Const(unix.X_OK),
			ptrace.Const(unix.AT_EMPTY_PATH|unix.AT_EACCESS)).Name("faccessat of the new directory")
	}
	if j.context.Root != nil {
		try(root)
		p.late = append(p.late, func() {
			p.fchdir(root).Name("fchdir to the new root")
			p.Syscall(unix.SYS_CHROOT, p.dot).Name("chroot")
		})
	}
	if j.context.Cwd != nil {
		try(cwd)
	}
	p.late = append(p.late, func() { p.fchdir(cwd).Name("fchdir") })
}
