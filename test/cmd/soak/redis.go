package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// redis saves itself, and writes its log of commands anew, in children of its own,
// as often as it can.
const redisConf = `
port 0
unixsocket %[1]s/redis
pidfile %[1]s/redis.pid
dir %[2]s/redis
logfile %[2]s/redis/log
appendonly yes
appendfsync always
aof-use-rdb-preamble no
auto-aof-rewrite-percentage 20
auto-aof-rewrite-min-size 256kb
save 2 100
`

// redisBad is in no log of a redis that is well. (The levels don't tell: what it says
// at its start is of the highest.)
var redisBad = regexp.MustCompile(`(?i)error|can't|unable|corrupt|truncat|broken|denied|short read|disk is busy|exited|crash|failed`)

// redis is a server on which redis-benchmark runs, over and over, and a client
// appends numbers to a list.
type redis struct {
	*site
	server         *rig.Running
	bench, appends *load
}

func startRedis(t rig.T, s *site) server {
	r := &redis{site: s}
	s.dir(t, "redis", 0o750)
	c := r.start(t, s.mount)
	r.appends = begin("redis's RPUSH", func(n int64) error { return c.ask(fmt.Sprintf(":%d", n), "RPUSH", "acks", fmt.Sprint(n)) })
	r.bench = begin("redis-benchmark", func(int64) error {
		return finished(s.command("redis-benchmark", "-s", s.own+"/redis", "-q", "-n", "200", "-c", "8", "-r", "500", "-t", "set,incr,hset,zadd"),
			func(out string) bool { return strings.Contains(out, "rror") || strings.Contains(out, "WARNING") })
	})
	return r
}

// start starts the server with its data beneath dir, and returns a connection.
func (r *redis) start(t rig.T, dir string) *respConn {
	t.Helper()
	conf := filepath.Join(r.own, "redis.conf")
	rig.Write(t, conf, fmt.Sprintf(redisConf, r.own, dir))
	r.server = r.daemon(t, r.command("redis-server", conf))
	var c *respConn
	comesUp(t, r.server, func() bool {
		conn, err := net.Dial("unix", r.own+"/redis")
		if err != nil {
			return false
		}
		c = &respConn{conn, bufio.NewReader(conn)}
		if c.ask("+PONG", "PING") != nil { // it is loading
			conn.Close()
			return false
		}
		return true
	})
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func (r *redis) acknowledged(t rig.T) int64 {
	t.Helper()
	return acknowledged(t, r.appends) + acknowledged(t, r.bench)
}

func (r *redis) finish(t rig.T) {
	stop(t, r.appends, r.bench)
	end(t, r.server, unix.SIGKILL)
	// A child that saves or rewrites ends by itself.
	rig.Await(t, patience, func() bool { return !inUse(filepath.Join(r.mount, "redis")) }, "redis's children end")
	log := filepath.Join(r.data, "redis/log")
	silent(t, log, redisBad)
	check := succeeds(t, r.command("redis-check-aof", filepath.Join(r.data, "redis/appendonlydir/appendonly.aof.manifest")))
	if !strings.Contains(check, "All AOF files and manifest are valid") {
		t.Errorf("redis-check-aof: %s", check)
	}
	c := r.start(t, r.data)
	n := r.appends.done.Load()
	if err := c.ask(fmt.Sprintf(":%d", n), "LLEN", "acks"); err != nil {
		t.Errorf("redis has lost appends: %v", err)
	}
	for i := range n {
		want := fmt.Sprint(i + 1)
		if err := c.ask(fmt.Sprintf("$%d\r\n%s", len(want), want), "LINDEX", "acks", fmt.Sprint(i)); err != nil {
			t.Fatalf("%v", err)
		}
	}
	end(t, r.server, unix.SIGTERM)
	silent(t, log, redisBad)
}

// inUse tells whether anybody has anything beneath dir open.
func inUse(dir string) bool {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") {
			return true
		}
	}
	return false
}

// respConn is a connection to redis.
type respConn struct {
	conn net.Conn
	in   *bufio.Reader
}

// ask sends a command and wants that reply, without its end of line.
func (c *respConn) ask(want string, words ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.conn.Write([]byte(b.String())); err != nil {
		return err
	}
	var got string
	for range 1 + strings.Count(want, "\r\n") {
		line, err := c.in.ReadString('\n')
		if got += line; err != nil {
			return fmt.Errorf("%v: %w after %q", words, err, got)
		}
		if line[0] == '-' {
			break
		}
	}
	if got != want+"\r\n" {
		return fmt.Errorf("%v: answered %q, want %q", words, got, want)
	}
	return nil
}
