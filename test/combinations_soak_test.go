//go:build soak

package test

const everyCombination = true
