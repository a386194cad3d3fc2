package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// transactions is how many pgbench does with each of its connections before it
// makes new ones.
const (
	connections  = 4
	transactions = 50
)

// postgresBad is in no log of a postgres that is well.
var postgresBad = regexp.MustCompile(`\b(WARNING|ERROR|FATAL|PANIC): |could not|corrupt`)

// postgres checkpoints, vacuums and switches its log files as often as it can, so
// that processes of it begin and end all the time.
const postgresConf = `
listen_addresses = ''
fsync = on
full_page_writes = on
shared_buffers = 16MB
min_wal_size = 32MB
max_wal_size = 64MB
checkpoint_timeout = 30s
autovacuum_naptime = 10s
logging_collector = on
log_directory = 'log'
log_filename = 'log'
log_checkpoints = on
`

// postgres is a server on which pgbench runs, over and over, and a client inserts
// numbers.
type postgres struct {
	*site
	bin            string
	server         *rig.Running
	bench, inserts *load
}

func startPostgres(t rig.T, s *site) server {
	p := &postgres{site: s}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(bins) == 0 {
		t.Fatalf("no /usr/lib/postgresql/*/bin/postgres here: run \"sh hack/deps.sh soak\"")
	}
	p.bin = filepath.Dir(bins[len(bins)-1])
	s.dir(t, "pg", 0o700)
	succeeds(t, p.run("initdb", "--pgdata", s.mount+"/pg", "--data-checksums", "--auth=trust", "--encoding=UTF8", "--locale=C"))
	conf := filepath.Join(s.mount, "pg/postgresql.auto.conf") // not beneath: its size is known there
	rig.Write(t, conf, postgresConf+"unix_socket_directories = '"+s.own+"'\n")
	p.start(t, s.mount)

	succeeds(t, p.run("pgbench", "--initialize", "--scale=1", "--quiet"))
	p.query(t, "CREATE TABLE acks (n bigint PRIMARY KEY, fill text); CREATE EXTENSION amcheck")
	psql := talkTo(t, p.run("psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"))
	p.inserts = begin("psql's insert", func(n int64) error {
		return psql.ask(fmt.Sprintf("INSERT INTO acks VALUES (%d, repeat('x', 500)) RETURNING n;", n), fmt.Sprint(n))
	})
	p.bench = begin("pgbench", func(int64) error {
		return finished(p.run("pgbench", "--no-vacuum", fmt.Sprintf("--client=%d", connections), "--jobs=2", fmt.Sprintf("--transactions=%d", transactions)),
			func(out string) bool { return strings.Contains(out, "error") || strings.Contains(out, "aborted") })
	})
	return p
}

// run is a command of postgres's own, which finds the server by its socket.
func (p *postgres) run(name string, args ...string) *exec.Cmd {
	cmd := p.command(filepath.Join(p.bin, name), args...)
	cmd.Env = append(cmd.Env, "PGHOST="+p.own, "PGDATABASE=postgres", "PGUSER=postgres")
	return cmd
}

// start starts the server on the data beneath dir, and waits until it says in its
// pid file that it is ready (src/include/utils/pidfile.h).
func (p *postgres) start(t rig.T, dir string) {
	t.Helper()
	p.server = p.daemon(t, p.run("postgres", "-D", filepath.Join(dir, "pg")))
	comesUp(t, p.server, func() bool {
		b, _ := os.ReadFile(filepath.Join(p.data, "pg/postmaster.pid"))
		lines := strings.Split(string(b), "\n")
		return len(lines) > 7 && lines[0] == fmt.Sprint(p.server.PID) && strings.TrimSpace(lines[7]) == "ready"
	})
}

func (p *postgres) query(t rig.T, sql string) string {
	t.Helper()
	return strings.TrimSpace(succeeds(t, p.run("psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--command="+sql)))
}

func (p *postgres) acknowledged(t rig.T) int64 {
	t.Helper()
	return acknowledged(t, p.inserts) + connections*transactions*acknowledged(t, p.bench)
}

// finish has it recover from its log, as after a crash, on the plain directory.
func (p *postgres) finish(t rig.T) {
	stop(t, p.inserts, p.bench)
	log := filepath.Join(p.data, "pg/log/log")
	silent(t, log, postgresBad)
	end(t, p.server, unix.SIGQUIT) // it ends without writing anything back
	if err := os.Rename(log, log+".served"); err != nil {
		t.Fatalf("%v", err)
	}
	p.start(t, p.data)
	n := p.inserts.done.Load()
	if got, want := p.query(t, "SELECT count(*), min(n), max(n), sum(length(fill)) FROM acks"), fmt.Sprintf("%d|1|%d|%d", n, n, 500*n); got != want {
		t.Errorf("postgres has of the acknowledged inserts %s, want %s", got, want)
	}
	if got, want := p.query(t, "SELECT count(*) FROM pgbench_history"), fmt.Sprint(connections*transactions*p.bench.done.Load()); got != want {
		t.Errorf("postgres has %s transactions of pgbench, want %s", got, want)
	}
	// Each transaction adds one number at four places.
	sums := p.query(t, `SELECT count(DISTINCT s) FROM (SELECT sum(abalance) AS s FROM pgbench_accounts
		UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(bbalance) FROM pgbench_branches
		UNION ALL SELECT sum(delta) FROM pgbench_history) AS sums`)
	if sums != "1" {
		t.Errorf("postgres's accounts don't add up: %s different sums", sums)
	}
	if said := succeeds(t, p.run("pg_amcheck", "--heapallindexed", "--parent-check", "--rootdescend", "postgres")); said != "" {
		t.Errorf("pg_amcheck: %s", said)
	}
	end(t, p.server, unix.SIGINT)
	silent(t, log, postgresBad)
	succeeds(t, p.run("pg_checksums", "--check", "--pgdata", p.data+"/pg"))
}
