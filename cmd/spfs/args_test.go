package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	commands := []*cli.Command{{
		Name:  "mode",
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir"}, &cli.BoolFlag{Name: "force"}},
	}}
	for in, want := range map[string]string{
		"spfs":                            "spfs",
		"spfs other M --dir D":            "spfs other M --dir D",
		"spfs mode M proxy --dir D":       "spfs mode --dir D M proxy",
		"spfs mode M --dir D proxy":       "spfs mode --dir D M proxy",
		"spfs mode --dir=D M proxy":       "spfs mode --dir=D M proxy",
		"spfs mode M --force proxy":       "spfs mode --force M proxy",
		"spfs mode M -dir D -- --force x": "spfs mode -dir D M -- --force x",
		"spfs mode M --dir":               "spfs mode --dir M",
		"spfs mode - M":                   "spfs mode - M",
	} {
		if got := flagsFirst(commands, strings.Fields(in)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s\nbecame %s\n  want %s", in, strings.Join(got, " "), want)
		}
	}
}
