// Command spfs: see "spfs help".
package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"spfs/internal/exit"
)

// commands holds one entry per command, each defined in the file of its name.
var commands = []*cli.Command{
	dumpCommand,
}

func main() {
	app := &cli.App{
		Name:            "spfs",
		Usage:           "TODO",
		Commands:        commands,
		HideVersion:     true,
		ExitErrHandler:  func(*cli.Context, error) {}, // statuses are exit's
		OnUsageError:    usageError,
		CommandNotFound: nil,
	}
	os.Exit(exit.Report(os.Stderr, app.Name, app.Run(os.Args)))
}

func usageError(_ *cli.Context, err error, _ bool) error { return exit.Usage("%v", err) }
