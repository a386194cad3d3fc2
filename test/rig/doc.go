// Package rig is what the end-to-end tests and the demo, soak and bench
// programs stand on: the programs under test and the fixtures, built once; FUSE
// daemons that nobody here wrote; containers; clients that verify themselves;
// and a fence around it all.
//
// The fence is [Contain]: it runs a program in a mount namespace of its own
// and, when that program has ended, says what is left of it: processes,
// mounts, sockets, cgroups, files. Whatever is left makes it fail.
//
// Everything that rig starts or mounts is bound to a [T], whose end ends it.
// Only processes that rig started are ever signalled, each by its pid.
//
// The programs under test are black boxes here: rig knows their commands,
// their output and the kernel's view of the result, and none of their code.
package rig
