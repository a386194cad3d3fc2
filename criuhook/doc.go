// Package criuhook takes a process tree that uses FUSE mounts through CRIU:
// [Dump], [Restore], and [Hook] for those who call CRIU themselves.
//
// CRIU can neither dump a FUSE mount nor bring one back. What it can do is
// leave a mount point to somebody else (--external mnt[…]), open the tree's
// files below it by name, and check their type, size and mode. So at dump,
// while the tree is stopped, this package writes a [Manifest] of what CRIU is
// going to open into the image directory; and at restore it makes a
// placeholder directory out of it, shows that through an spfs mount, and
// shuts the mount's gate as soon as CRIU has opened and mapped everything and
// before any task of the tree runs. Then the real file system may be mounted,
// and a [Swapper] moves the tree onto it.
//
// It owns the manifest, the placeholder, the spfs mounts of a restore and
// everything else below the directory of that restore in /run/spfs; what a
// failed restore made is gone when it returns. It never touches the file
// systems of the tree other than to look at what the tree has open, never
// follows a path of a manifest out of the placeholder, and never forwards a
// made-up byte to a task of the tree.
package criuhook
