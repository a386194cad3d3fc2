package mounts

import "os"

// Namespace is one mount namespace of the machine.
type Namespace struct {
	Inode uint64   // of its nsfs file: tells namespaces apart
	File  *os.File // open on it (as /proc/PID/ns/mnt), for setns(2)
	PIDs  []int    // processes seen in it; empty if only a bind mount keeps it
}
