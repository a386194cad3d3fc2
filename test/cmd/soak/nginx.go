package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// nginx keeps descriptors of what it served last, and what it is sent it writes to
// the mount and renames there.
const nginxConf = `
daemon off;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log %[2]s/logs/error.log notice;
events { worker_connections 64; }
http {
	access_log %[2]s/logs/access.log;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	client_max_body_size 2m;
	client_body_buffer_size 4k;
	keepalive_requests 100;
	server {
		listen unix:%[1]s/http;
		root %[2]s/www;
		open_file_cache max=50 inactive=10s;
		open_file_cache_valid 2s;
		location / { sendfile on; }
		location /read/ { alias %[2]s/www/; sendfile off; }
		location /put/ { dav_methods PUT DELETE; open_file_cache off; }
	}
}
`

var nginxBad = regexp.MustCompile(`\[(warn|error|crit|alert|emerg)\]`)

const (
	pages    = 100
	pageSize = 1 << 20 // at most
)

// nginx is a server whose clients get pages and put new ones, and compare.
type nginx struct {
	*site
	server     *rig.Running
	client     *http.Client
	gets, puts []*load
}

func startNginx(t rig.T, s *site) server {
	x := &nginx{site: s, client: &http.Client{
		Timeout: patience,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.own+"/http")
		}},
	}}
	t.Cleanup(x.client.CloseIdleConnections)
	for _, dir := range []string{"www", "www/put", "logs", "body"} {
		s.dir(t, dir, 0o755)
	}
	for i := range pages {
		rig.Write(t, fmt.Sprintf("%s/www/%d", s.data, i), string(content(int64(i))))
	}
	conf := filepath.Join(s.own, "nginx.conf")
	rig.Write(t, conf, fmt.Sprintf(nginxConf, s.own, s.mount))
	x.server = s.daemon(t, s.command("nginx", "-p", s.own, "-c", conf, "-e", s.mount+"/logs/error.log"))
	comesUp(t, x.server, func() bool { return x.get("/0", 0) == nil })

	for i, dir := range []string{"/", "/", "/read/"} {
		x.gets = append(x.gets, begin("nginx's GET in "+dir, func(n int64) error {
			page := (n*7 + int64(i)*31) % pages
			return x.get(fmt.Sprint(dir, page), page)
		}))
	}
	x.puts = []*load{begin("nginx's PUT", func(n int64) error {
		path := fmt.Sprintf("/put/%d", n)
		if err := x.do(http.MethodPut, path, content(n), http.StatusCreated); err != nil {
			return err
		}
		// Some hundreds of them are enough to look at in the end.
		if n > 500 {
			if err := x.do(http.MethodDelete, fmt.Sprintf("/put/%d", n-500), nil, http.StatusNoContent); err != nil {
				return err
			}
		}
		return x.get(path, n)
	})}
	return x
}

// content is what stands in the page of a number: of a length up to 1 MiB,
// the short ones more often.
func content(n int64) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, 0, pageSize+8)
	for length := 1 + r.IntN(pageSize>>r.IntN(16)); len(b) < length; {
		b = binary.NativeEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

func (x *nginx) get(path string, page int64) error {
	return x.do(http.MethodGet, path, nil, http.StatusOK, content(page)...)
}

// do makes a request and compares what comes.
func (x *nginx) do(method, path string, body []byte, status int, want ...byte) error {
	req, err := http.NewRequest(method, "http://nginx"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := x.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w after %d bytes", method, path, err, len(got))
	case resp.StatusCode != status:
		return fmt.Errorf("%s %s: status %s: %s", method, path, resp.Status, got)
	case method == http.MethodGet && !bytes.Equal(got, want):
		return fmt.Errorf("%s %s: %d bytes, not the %d that are there", method, path, len(got), len(want))
	}
	return nil
}

func (x *nginx) acknowledged(t rig.T) int64 {
	t.Helper()
	return acknowledged(t, x.gets...) + acknowledged(t, x.puts...)
}

func (x *nginx) finish(t rig.T) {
	stop(t, append(x.gets, x.puts...)...)
	end(t, x.server, unix.SIGQUIT) // when all requests are through
	silent(t, filepath.Join(x.data, "logs/error.log"), nginxBad)
	lines := silent(t, filepath.Join(x.data, "logs/access.log"), regexp.MustCompile(`" 5\d\d |\x00`))
	n := x.puts[0].done.Load()
	if requests := acknowledged(t, x.gets...) + 2*n + max(0, n-500); int64(len(lines)) < requests {
		t.Errorf("nginx's log has %d lines, want at least %d", len(lines), requests)
	}
	for i := max(1, n-499); i <= n; i++ {
		got, err := os.ReadFile(fmt.Sprintf("%s/www/put/%d", x.data, i))
		if err != nil || !bytes.Equal(got, content(i)) {
			t.Errorf("of page %d that was put there are %d bytes (%v), want %d", i, len(got), err, len(content(i)))
		}
	}
}
