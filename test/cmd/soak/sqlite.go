package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"spfs/test/rig"
)

// sqlite is two databases, one with a write-ahead log (and so a mapping that all
// share) and one with a journal that each transaction makes and unlinks. In each
// write a sqlite3 that lives on and one after the other that begins anew.
type sqlite struct {
	*site
	dbs []*database
}

type database struct {
	name   string
	settle string // what each connection says first
	writes []*load
}

func startSqlite(t rig.T, s *site) server {
	q := &sqlite{site: s, dbs: []*database{
		{name: "wal.db", settle: "PRAGMA journal_mode=wal; PRAGMA mmap_size=67108864;"},
		{name: "delete.db", settle: "PRAGMA journal_mode=delete;"},
	}}
	for _, db := range q.dbs {
		const always = ".timeout 60000\n.log stderr\nPRAGMA synchronous=FULL;\n"
		path := filepath.Join(s.mount, db.name)
		create := s.command("sqlite3", "-bail", path, db.settle+"CREATE TABLE acks (writer, n, fill, PRIMARY KEY (writer, n)); CREATE INDEX fills ON acks (fill);")
		succeeds(t, create)
		insert := func(writer int, n int64) string {
			return fmt.Sprintf("INSERT INTO acks VALUES (%d, %d, hex(randomblob(200))); SELECT max(n) FROM acks WHERE writer=%d;", writer, n, writer)
		}
		// It would keep its answers to itself otherwise, as stdio does.
		lives := talkTo(t, s.command("stdbuf", "-oL", "sqlite3", "-bail", path))
		if _, err := fmt.Fprint(lives.in, always+".output /dev/null\n"+db.settle+"\n.output stdout\n"); err != nil {
			t.Fatalf("%v", err)
		}
		// Its children are born in a directory there, so none comes from outside,
		// and opens the database of a file system that others are leaving.
		begins := s.command("sh", "-c", `while read -r sql; do sqlite3 -bail -cmd ".timeout 60000" -cmd "PRAGMA synchronous=FULL" "$0" "$sql"; done`, db.name)
		begins.Dir = s.mount
		eachAnew := talkTo(t, begins)
		db.writes = []*load{
			begin("sqlite3's insert into "+db.name, func(n int64) error { return lives.ask(insert(0, n), fmt.Sprint(n)) }),
			begin("a new sqlite3's insert into "+db.name, func(n int64) error { return eachAnew.ask(insert(1, n), fmt.Sprint(n)) }),
		}
	}
	return q
}

func (q *sqlite) acknowledged(t rig.T) (sum int64) {
	t.Helper()
	for _, db := range q.dbs {
		sum += acknowledged(t, db.writes...)
	}
	return sum
}

func (q *sqlite) finish(t rig.T) {
	for _, db := range q.dbs {
		stop(t, db.writes...)
		ask := func(sql string) string {
			return strings.TrimSpace(succeeds(t, q.command("sqlite3", "-bail", filepath.Join(q.data, db.name), sql)))
		}
		if got := ask("PRAGMA integrity_check"); got != "ok" {
			t.Errorf("%s: integrity_check: %s", db.name, got)
		}
		for i, w := range db.writes {
			n := w.done.Load()
			got := ask(fmt.Sprintf("SELECT count(*), min(n), max(n) FROM acks WHERE writer=%d", i))
			if want := fmt.Sprintf("%d|1|%d", n, n); got != want {
				t.Errorf("%s has of writer %d the inserts %s, want %s", db.name, i, got, want)
			}
		}
	}
}
