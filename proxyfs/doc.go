// Package proxyfs shows a directory through FUSE: every request is forwarded
// to the file it names, and the directory can be exchanged for another one
// while programs keep files open ([FS.Retarget]).
//
// # What it owns
//
// One O_PATH descriptor for each file the kernel knows (a node), one
// descriptor for each open file (a handle), and one for each owner of record
// locks on a file. It opens them itself and closes them itself; of the
// directory it is given it keeps descriptors of its own.
//
// # What it never does
//
// It never walks a path. A file is reached from its parent's descriptor by
// one name, with O_NOFOLLOW, or through a descriptor it already has; so no
// symbolic link is ever followed here, and neither a rename nor an unlink, on
// the mount or behind it, makes it touch another file than the one meant. ".."
// is the kernel's own business (fs/namei.c, follow_dotdot) and never arrives.
// File systems mounted below the directory are part of what is shown, as with
// a recursive bind mount: whoever may mount there is root already.
//
// # Nodes
//
// A node is told by st_dev and st_ino, which the kernel does not give to
// another file for as long as a descriptor is open on the first one; hard
// links are one node. Descriptors run out before nodes do: beyond a budget
// (half of RLIMIT_NOFILE, which New raises as far as it may) those not used
// lately are closed, and reopened by handle (open_by_handle_at(2)) or else by
// name. A file that comes back with another handle or birth time is another
// file; the node of the first then answers ESTALE.
//
// # Another directory
//
// After Retarget, nodes and handles are found again by name, at their first
// use. What was deleted but still is open has no name: it stays on its old
// file. A name that is missing, or stands for another type of file, gives
// ESTALE for that node until the next Retarget. Locks are taken again at once;
// those that can't be are in [FS.LostLocks].
//
// # Who does it
//
// Permissions are the kernel's to check (mount option default_permissions;
// see [Configure] for the connection). What is created is created with the
// caller's fsuid and fsgid, on a locked thread, so there is no moment at which
// it belongs to root (a chown after the creation would have one, and would be
// charged to root's quota).
package proxyfs
