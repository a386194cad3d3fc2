// Package fault lets a test kill a program at a place of its choice.
//
// The places are named in the code by calls of [Point]. Without the build tag
// "faults" they are nothing at all: an empty function that the compiler leaves
// out. With it, the environment says what happens there:
//
//	SPFS_FAULT=NAME[#N]   where: at the N-th time (the first) that NAME is reached
//	SPFS_FAULT_KILL=WHO   who gets SIGKILL: "self" (this process), "parent", "both",
//	                      or "all": the parent's other children too. With "stop" this
//	                      process gets SIGSTOP instead
//	SPFS_FAULT_LOG=FILE   "PID NAME" is appended there for every point that is reached;
//	                      with it, processes that share it have one kill among them
//
// The package owns nothing, and decides nothing.
package fault
