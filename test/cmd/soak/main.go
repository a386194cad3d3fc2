// Command soak swaps programs that are at work, again and again, and fails if one
// of them noticed:
//
//   - a client that counts, back and forth between two mounts, 200 times: no
//     call of it may fail, no byte be lost, nothing leak: descriptors or mappings
//     of the client, descriptors of the daemons, processes;
//   - postgres, sqlite3, redis and nginx of the distribution, each with its data and
//     its logs on the mount and load on it, 50 times from one FUSE daemon to the
//     next: no error in any log, what they acknowledged is all there, and their
//     own tools find their files whole.
//
// It is behind "make soak"; "hack/deps.sh soak" installs the servers.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"spfs/test/rig"
)

var (
	rounds = flag.Int("rounds", 200, "swap the counting client so often")
	swaps  = flag.Int("swaps", 50, "swap each server so often")
	only   = flag.String("only", "", "a part or several, with commas: "+strings.Join(names(), ","))
)

// parts are what there is to be swapped.
var parts = []struct {
	name string
	run  func(rig.T)
}{
	{"counter", counter},
	{"postgres", served("postgres", startPostgres)},
	{"sqlite3", served("nobody", startSqlite)},
	{"redis", served("redis", startRedis)},
	{"nginx", served("www-data", startNginx)},
}

func names() []string {
	return []string{"counter", "postgres", "sqlite3", "redis", "nginx"}
}

func main() {
	os.Exit(rig.Program("soak", func(t rig.T) {
		flag.Parse()
		t.Cleanup(rig.RemoveBuilt)
		wanted := names()
		if *only != "" {
			wanted = strings.Split(*only, ",")
		}
		for _, name := range wanted {
			if !slices.Contains(names(), name) {
				t.Fatalf("-only %s: there are %s", name, strings.Join(names(), ", "))
			}
		}
		for _, p := range parts {
			if slices.Contains(wanted, p.name) && !t.Failed() {
				fmt.Printf("== %s\n", p.name)
				p.run(t)
			}
		}
	}))
}
