// Package mounts knows who mounts what where: the mount namespaces of the
// machine, the mounts in each, and how to clone, attach and detach one.
//
// A [Namespace] owns its descriptor until Close; clones are the caller's to
// close. What must happen inside a namespace happens on a thread of its own
// that ends with it ([Namespace.Do]), so no caller is ever moved.
//
// Nothing here asks a mounted file system anything, save [Open] and [Clone],
// which walk the mount that they are given, and [Lookup], which asks only what
// is not FUSE.
package mounts
