// Package freezer stops whole groups of processes: cgroup v2's cgroup.freeze
// and cgroup v1's freezer controller behind one face.
//
// A [Hierarchy] is where such groups are, found from /proc/self/mountinfo. A
// [Cgroup] made by [Hierarchy.Create] is the caller's until [Cgroup.Remove];
// one found by [Hierarchy.Of] is somebody else's.
//
// The package never decides who is to be frozen, and touches no limit of any
// cgroup. Its values are not safe for use by several goroutines at once.
package freezer
