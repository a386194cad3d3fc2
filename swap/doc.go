// Package swap gives live processes the files of one mount in place of those
// of another: file descriptions, mappings, working and root directories, and
// the mount points themselves.
//
// A swap goes through five steps, each in files of its name:
//
//	find     who uses the old mount, and how: without asking the mount
//	plan     the replacements, opened before anyone is stopped; what is in the way
//	stop     seize every task concerned, look again, flush the old mount
//	replace  per process one batch that prepares, waits for the verdict, and finishes
//	commit   the mount points, the verdict, the release
//
// The package owns every descriptor it opens until [Plan.Close]. It never
// sends a request to the old file system while finding or planning, and knows
// nothing of CRIU or of what serves either mount.
package swap
