// Package proctree tells which processes a tree has, and what /proc says of
// one. It never stops a process, nor holds on to one: whoever is listed may be
// gone, and others may have come, when the caller looks.
package proctree
