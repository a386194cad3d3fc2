//go:build !soak

package test

// everyCombination of a point and who is killed there is for "make soak".
const everyCombination = false
