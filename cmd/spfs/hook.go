package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"spfs/criuhook"
	"spfs/internal/exit"
)

var hookCommand = &cli.Command{
	Name:      "hook",
	Usage:     "be CRIU's action script (criu … --action-script PATH-OF-SPFS)",
	UsageText: "criu dump|restore … --action-script PATH-OF-SPFS",
	Description: `What "spfs dump" and "spfs restore" do, for those who call CRIU themselves.
Give CRIU the path of spfs, for the dump and for the restore (called by CRIU,
spfs is its own hook), together with

   dump:     --external 'mnt[MOUNTPOINT]:KEY'   for each FUSE mount of the tree
   restore:  --external 'mnt[KEY]:DIR'          DIR: an empty directory, where
                                                a stub is mounted

Environment, of CRIU and so of the hook:
   SPFS_MOUNT     MOUNTPOINT=COMMAND lines: what "spfs restore --mount" takes
                  (needs criu restore --restore-detached)
   SPFS_TIMEOUT   what "spfs restore --timeout" takes
   SPFS_EXTERNAL  mnt[KEY]:DIR lines, where CRIU has them from elsewhere than
                  its command line (a configuration file, RPC)

Example:
   criu dump --tree 4711 --images-dir /var/ckpt \
      --external 'mnt[/mnt/data]:data' --action-script /usr/bin/spfs
   SPFS_MOUNT='/mnt/data=sshfs backup:/data %m' \
   criu restore --restore-detached --root /srv/container --images-dir /var/ckpt \
      --external 'mnt[data]:/mnt/stub' --action-script /usr/bin/spfs`,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "watch", Hidden: true}, // set by criuhook
	},
	OnUsageError: usageError,
	Action:       hook,
}

// asHook makes "spfs hook" of a bare "spfs" that CRIU calls: its action script
// is a path, without arguments (criu/action-scripts.c: run_shell_scripts).
func asHook(argv []string) []string {
	if len(argv) == 1 && os.Getenv("CRTOOLS_SCRIPT_ACTION") != "" {
		return append(argv, hookCommand.Name)
	}
	return argv
}

func hook(c *cli.Context) error {
	if c.NArg() > 0 && !c.IsSet("watch") {
		return exit.Usage("hook takes no arguments: CRIU says what to do in its environment")
	}
	o := criuhook.HookOptions{
		Action:   os.Getenv("CRTOOLS_SCRIPT_ACTION"),
		Images:   os.Getenv("CRTOOLS_IMAGE_DIR"),
		Root:     os.Getenv("CRTOOLS_INIT_PID"),
		External: os.Getenv("SPFS_EXTERNAL"),
		Swap:     swapper,
		Event:    func(line string) { fmt.Fprintln(os.Stderr, line) },
	}
	if v := os.Getenv("SPFS_TIMEOUT"); v != "" {
		t, err := time.ParseDuration(v)
		if err != nil || t <= 0 {
			return exit.Usage("SPFS_TIMEOUT=%s is not a positive time, such as 30s", v)
		}
		o.Timeout = t
	}
	for _, line := range strings.Split(os.Getenv("SPFS_MOUNT"), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		m, err := criuhook.ParseMountCommand(line)
		if err != nil {
			return fmt.Errorf("SPFS_MOUNT: %w", err)
		}
		o.Mounts = append(o.Mounts, m)
	}
	if c.IsSet("watch") {
		return criuhook.Watch(c.Context, o, c.String("watch"), c.Args().Slice())
	}
	return criuhook.Hook(c.Context, o)
}
