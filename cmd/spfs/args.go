package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst moves a command's flags before its arguments: cli takes none for
// a flag that stands behind an argument. What follows "--" stays as it is.
func flagsFirst(commands []*cli.Command, argv []string) []string {
	if len(argv) < 2 {
		return argv
	}
	i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(argv[1]) })
	if i < 0 {
		return argv
	}
	var flags, rest []string
	for args := argv[2:]; len(args) > 0; args = args[1:] {
		a := args[0]
		if a == "--" {
			rest = append(rest, args...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		flags = append(flags, a)
		if takesValue(commands[i], a) && len(args) > 1 {
			args = args[1:]
			flags = append(flags, args[0])
		}
	}
	return slices.Concat(argv[:2], flags, rest)
}

// takesValue says whether the argument behind a flag is its value.
func takesValue(c *cli.Command, flag string) bool {
	name := strings.TrimLeft(flag, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range c.Flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}
