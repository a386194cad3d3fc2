// Package mounts knows who mounts what where: mount namespaces, the mounts in
// each, and how to clone, attach and detach one.
//
// A [Namespace] owns its descriptor until Close. Functions that enter a
// namespace do it on a thread of their own that ends with them, so no caller
// is ever moved. Nothing here asks a mounted file system anything.
package mounts
