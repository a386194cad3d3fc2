// Package mountcmd runs what a user gave to have a file system mounted: a
// command for the shell, in which %m stands for the directory where it must
// mount ("%%" for a percent sign).
//
// It owns the command until that has mounted something. From then on nobody
// does: a command that stays is a daemon like any other. It never unmounts.
package mountcmd
