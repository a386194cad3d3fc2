package main

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"spfs/criuhook"
	"spfs/internal/exit"
	"spfs/internal/ptrace"
)

var restoreCommand = &cli.Command{
	Name:      "restore",
	Usage:     "restore a checkpointed tree before its FUSE file systems are there",
	UsageText: "spfs restore --images-dir DIR [--detach] [--strategy swap|handover] [--mount MOUNTPOINT='COMMAND']… [--init FLAGS]… [--timeout TIME] [--criu PATH] [-- CRIU OPTIONS]",
	Description: `The tree comes back on stubs: whoever touches one of its FUSE mounts waits,
and nothing fails. For each --mount the command is run (by sh -c; "%m" stands
for the directory where it must mount, "%%" for a percent sign) and the tree is
moved onto what it mounted. If that fails the tree is there all the same, and
waits; the exit status is 1.

A file system whose daemon is in the checkpoint needs no --mount: its connection
is made anew and given to the daemon, and nothing waits. It gets what daemon and
kernel had negotiated, which --init overrides: for a kernel that offers less, or
if the dump could not read it. FLAG is added, -FLAG is taken away (the kernel's
FUSE_…, in small letters), NAME=NUMBER sets minor, max_write, max_readahead,
max_pages, max_background, congestion_threshold, time_gran or flags as a whole.

A mount without a command stays a stub. Mount its file system anywhere, and
"spfs-swap run --from STUB --to THERE" moves the tree; the command to type is
printed, with the stub's place. Or end it with "spfs umount --force STUB".

Waits for the root of the tree and ends with its exit status, 128 and the
signal's number if one killed it, unless --detach is given.

Example:
   spfs restore --images-dir /var/ckpt --detach \
      --mount /mnt/data='sshfs backup:/data %m' -- --root /srv/container`,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "images-dir", Usage: "the checkpoint is in `DIR`, written by \"spfs dump\""},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the tree runs; print the pid of its root"},
		&cli.StringFlag{Name: "strategy", Usage: "`HOW`: swap; or handover, which needs the daemon in the checkpoint and is refused without", DefaultText: "handover if a daemon is in the checkpoint, else swap"},
		&cli.GenericFlag{Name: "mount", Value: new(mountCommands), Usage: "`MOUNTPOINT='COMMAND'`: how to mount what the tree has at MOUNTPOINT; repeatable"},
		&cli.GenericFlag{Name: "init", Value: new(initChanges), Usage: "`[MOUNTPOINT:]FLAGS`: what a daemon of the checkpoint is to have negotiated instead: async_read,-writeback_cache,max_write=65536 …; repeatable"},
		&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "give up after `TIME` if a command of --mount has not mounted, or the tree is not moved there"},
		criuFlag,
	},
	OnUsageError: usageError,
	Action:       restore,
}

// mountCommands collects the values of --mount. A list flag of cli's own would
// split a command at its commas.
type mountCommands []criuhook.MountCommand

// Set implements flag.Value.
func (m *mountCommands) Set(s string) error {
	one, err := criuhook.ParseMountCommand(s)
	if err == nil {
		*m = append(*m, one)
	}
	return err
}

// String implements flag.Value.
func (m *mountCommands) String() string { return "" }

// initChanges collects the values of --init, which have commas, too.
type initChanges []criuhook.InitChange

// Set implements flag.Value.
func (i *initChanges) Set(s string) error {
	one, err := criuhook.ParseInitChange(s)
	if err == nil {
		*i = append(*i, one)
	}
	return err
}

// String implements flag.Value.
func (i *initChanges) String() string { return "" }

func restore(c *cli.Context) error {
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
	done, err := criuhook.Restore(c.Context, criuhook.RestoreOptions{
		Images:   c.String("images-dir"),
		Detach:   c.Bool("detach"),
		Strategy: c.String("strategy"),
		Mounts:   *c.Generic("mount").(*mountCommands),
		Init:     *c.Generic("init").(*initChanges),
		Timeout:  c.Duration("timeout"),
		CRIU:     c.String("criu"),
		Extra:    c.Args().Slice(),
		Swap:     swapper,
		Event:    func(line string) { fmt.Fprintln(os.Stderr, line) },
	})
	if err != nil {
		return err
	}
	if c.Bool("detach") {
		fmt.Println(done.PID)
		return nil
	}
	if done.Status != 0 {
		// The tree's own: package exit knows only those of spfs.
		os.Exit(done.Status)
	}
	return nil
}
