package ptrace

import "golang.org/x/sys/unix"

// vforkCall is the system call that vfork(3) makes.
const vforkCall = unix.SYS_VFORK
