// Package exit maps errors to the exit statuses that spfs and spfs-swap
// promise, so that no command invents its own.
//
// It owns the statuses and the way an error is printed (one line on standard
// error, prefixed by the program's name). It never decides what failed: the
// packages below return errors, and wrap with [Usage] or [Refuse] where the
// status is not [Failed].
package exit
