package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"spfs/criuhook"
	"spfs/handover"
	"spfs/internal/exit"
	"spfs/internal/privilege"
	"spfs/internal/ptrace"
)

var dumpCommand = &cli.Command{
	Name:      "dump",
	Usage:     "checkpoint a process tree that uses FUSE mounts, with CRIU",
	UsageText: "spfs dump --tree PID --images-dir DIR [--leave-running] [--timeout TIME] [--criu PATH] [-- CRIU OPTIONS]\n   spfs dump --recover",
	Description: `Writes CRIU's images of the tree into the image directory. Every FUSE
mount in the tree's mount namespace is left out of them; what "spfs restore"
must know of it goes into spfs.manifest beside them. The daemons may run
outside the tree, or be part of it: then they are stopped after their clients,
when every request is answered. Unless --leave-running is given the tree is
killed. If the dump fails the tree runs on, and so it does if spfs is killed:
another process of spfs keeps the tree, and puts it back.

--recover lets trees go on that are frozen since both were killed. Their
daemons have lost their connections then.

CRIU's own options follow "--".

Example:
   spfs dump --tree 4711 --images-dir /var/ckpt -- --tcp-established --file-locks`,
	Flags: []cli.Flag{
		&cli.IntFlag{Name: "tree", Usage: "checkpoint process `PID` and all its descendants", DefaultText: "none"},
		&cli.StringFlag{Name: "images-dir", Usage: "write the checkpoint into `DIR`, a directory that holds none yet"},
		&cli.BoolFlag{Name: "leave-running", Usage: "let the tree go on afterwards"},
		&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "give up after `TIME` if a tree with its own FUSE daemons has not stopped"},
		&cli.BoolFlag{Name: "recover", Usage: "let trees go on that were left frozen"},
		criuFlag,
	},
	OnUsageError: usageError,
	Action:       dump,
}

var criuFlag = &cli.StringFlag{Name: "criu", Usage: "use the CRIU at `PATH` (default: beside spfs, then in $PATH)"}

func dump(c *cli.Context) error {
	if c.Bool("recover") {
		return recoverTrees(c)
	}
	if c.Int("tree") <= 0 {
		return exit.Usage("--tree PID is needed, a positive number")
	}
	if c.String("images-dir") == "" {
		return exit.Usage("--images-dir DIR is needed")
	}
	if c.Duration("timeout") <= 0 {
		return exit.Usage("--timeout: %v is not a positive time", c.Duration("timeout"))
	}
	if err := ptrace.Supported(); err != nil {
		return exit.Refuse(err)
	}
	shortLived()
	done, err := criuhook.Dump(c.Context, criuhook.DumpOptions{
		Tree:         c.Int("tree"),
		Images:       c.String("images-dir"),
		LeaveRunning: c.Bool("leave-running"),
		Timeout:      c.Duration("timeout"),
		CRIU:         c.String("criu"),
		Extra:        c.Args().Slice(),
	})
	if err != nil {
		return err
	}
	for _, fs := range done.Manifest.FileSystems {
		for _, m := range fs.Mounts {
			if fs.Record != nil {
				fmt.Printf("%s: %s of %s, with its daemon, %d files recorded\n", m.Point, fs.Type, fs.Source, len(fs.Record.Nodes))
				continue
			}
			fmt.Printf("%s: %s of %s, %d files recorded\n", m.Point, fs.Type, fs.Source, len(fs.Nodes))
		}
	}
	return nil
}

// recoverTrees says which trees were let go on.
func recoverTrees(c *cli.Context) error {
	if c.IsSet("tree") || c.IsSet("images-dir") || c.NArg() > 0 {
		return exit.Usage("--recover goes alone")
	}
	if err := privilege.NeedRoot(); err != nil {
		return err
	}
	all, err := handover.Recover()
	for _, r := range all {
		fmt.Printf("processes %v of cgroup %s go on\n", r.Processes, r.Cgroup)
	}
	return err
}
