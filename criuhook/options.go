package criuhook

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"

	"spfs/internal/exit"
)

// CRIU's RPC has a field for some of its options and takes all of them in a
// configuration file, whose syntax (config.c: parse_statement) cannot express
// every value. So those options whose values are paths, or that go-criu's
// messages must carry for other reasons, go into the message; the rest goes
// into a file. See "man criu", CONFIGURATION FILES.

// ours are the options that SPFS itself gives to CRIU.
var ours = map[string]string{
	"tree":             "--tree",
	"images-dir":       "--images-dir",
	"leave-running":    "--leave-running",
	"restore-detached": "--detach",
	"restore-sibling":  "--detach",
	"exec-cmd":         "",
	"log-file":         "",
	"work-dir":         "",
}

// short are CRIU's one-letter options (config.c: short_opts).
var short = map[byte]string{
	'D': "images-dir", 'W': "work-dir", 'o': "log-file", 't': "tree", 'd': "restore-detached",
	'S': "restore-sibling", 'R': "leave-running", 's': "leave-stopped", 'j': "shell-job",
	'l': "file-locks", 'r': "root", 'J': "join-ns", 'L': "libdir", 'x': "ext-unix-sk",
	'h': "help", 'V': "version", 'M': "ext-mount-map", 'F': "fields",
}

// valued are the one-letter options that have a value.
const valued = "DWotrJLMF"

// criuOptions is what a user wrote after "--".
type criuOptions struct {
	config []string // lines of a configuration file
	fields []func(*rpc.CriuOpts)
}

// parseOptions parses CRIU's command line. Its errors are wrong usage.
func parseOptions(args []string) (*criuOptions, error) {
	o := new(criuOptions)
	for len(args) > 0 {
		name, value, has, rest, err := nextOption(args)
		if err != nil {
			return nil, err
		}
		args = rest
		if err := o.add(name, value, has); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// nextOption splits off the first option. An argument that does not look like
// an option is the value of the one before: CRIU has no arguments but options.
func nextOption(args []string) (name, value string, has bool, rest []string, err error) {
	arg, rest := args[0], args[1:]
	takeNext := func() {
		if !has && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			value, has, rest = rest[0], true, rest[1:]
		}
	}
	switch {
	case strings.HasPrefix(arg, "--") && len(arg) > 2:
		name, value, has = strings.Cut(arg[2:], "=")
		takeNext()
	case strings.HasPrefix(arg, "-v"):
		name = "verbosity"
		value, has = arg[2:], len(arg) > 2
	case len(arg) >= 2 && arg[0] == '-' && short[arg[1]] != "":
		name = short[arg[1]]
		value = arg[2:]
		has = value != ""
		if !strings.Contains(valued, arg[1:2]) {
			if has {
				return "", "", false, nil, exit.Usage("CRIU option %s: write each option of its own", arg)
			}
			break
		}
		takeNext()
	default:
		return "", "", false, nil, exit.Usage("%q is not an option of CRIU's", arg)
	}
	return name, value, has, rest, nil
}

func (o *criuOptions) add(name, value string, has bool) error {
	field := func(set func(*rpc.CriuOpts)) error {
		if !has || value == "" {
			return exit.Usage("CRIU option --%s needs a value", name)
		}
		o.fields = append(o.fields, set)
		return nil
	}
	if instead, mine := ours[name]; mine {
		if instead == "" {
			return exit.Usage("CRIU option --%s cannot be given: spfs uses it itself", name)
		}
		return exit.Usage("CRIU option --%s cannot be given: see spfs's own %s", name, instead)
	}
	switch name {
	case "verbosity":
		// CRIU takes the level from the message only (cr-service.c:
		// setup_logging_from_req).
		level := strings.Count("v"+value, "v")
		if strings.Trim(value, "v") != "" {
			var err error
			if level, err = strconv.Atoi(value); err != nil || level < 0 || level > 4 {
				return exit.Usage("CRIU option -v: %q is not a level from 0 to 4", value)
			}
		}
		o.fields = append(o.fields, func(r *rpc.CriuOpts) { r.LogLevel = proto.Int32(int32(level)) })
		return nil
	case "root":
		return field(func(r *rpc.CriuOpts) { r.Root = proto.String(value) })
	case "external":
		return field(func(r *rpc.CriuOpts) { r.External = append(r.External, value) })
	case "freeze-cgroup":
		return field(func(r *rpc.CriuOpts) { r.FreezeCgroup = proto.String(value) })
	}
	line, err := configLine(name, value, has)
	if err != nil {
		return err
	}
	o.config = append(o.config, line)
	return nil
}

// configLine writes an option as a line of a configuration file.
func configLine(name, value string, has bool) (string, error) {
	for _, r := range name {
		if r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return "", exit.Usage("CRIU option --%s: %q is not in any option's name", name, r)
		}
	}
	if name == "" || name[0] == '-' {
		return "", exit.Usage("CRIU option --%s: no such name", name)
	}
	if !has {
		return name, nil
	}
	// parse_statement ends a value at "#" even between quotes, drops
	// backslashes before quotes only, and takes blanks in some places for
	// the next value.
	if i := strings.IndexAny(value, "#\" \t\n\r\v\f\\\x00"); i >= 0 {
		return "", exit.Usage("CRIU option --%s: its configuration file, by which spfs passes the option on, cannot hold %q in a value", name, value[i])
	}
	if value == "" {
		return name + ` ""`, nil
	}
	return name + " " + value, nil
}

// apply puts the options into a request. done removes what that made, after
// CRIU has ended.
func (o *criuOptions) apply(r *rpc.CriuOpts) (done func(), err error) {
	for _, set := range o.fields {
		set(r)
	}
	if len(o.config) == 0 {
		return func() {}, nil
	}
	f, err := os.CreateTemp("", "spfs-criu-*.conf") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("a configuration file for CRIU: %w", err)
	}
	done = func() { os.Remove(f.Name()) }
	_, err = f.WriteString(strings.Join(o.config, "\n") + "\n")
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		done()
		return nil, fmt.Errorf("a configuration file for CRIU: %w", err)
	}
	r.ConfigFile = proto.String(f.Name())
	return done, nil
}
