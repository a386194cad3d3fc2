package rig

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// SSHServer is an sshd on loopback with keys, configuration and port of its
// own, which serves SFTP to root and nothing else.
type SSHServer struct {
	port int
	dir  string // its keys
}

// newSSHServer makes the keys and chooses the port of one.
func newSSHServer(t T) *SSHServer {
	t.Helper()
	s := &SSHServer{dir: Dir(t), port: freePort(t)}
	for _, key := range []string{"host", "user"} {
		Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path(key)).OK(t)
	}
	host, err := os.ReadFile(s.path("host.pub"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	Write(t, s.path("known"), fmt.Sprintf("[127.0.0.1]:%d %s", s.port, host))
	return s
}

// config is the configuration of an sshd that finds the keys where at has them.
func (s *SSHServer) config(at *SSHServer) string {
	return fmt.Sprintf(`
ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
`, s.port, at.path("host"), at.path("user.pub"))
}

// StartSSH starts one, until t ends.
func StartSSH(t T) *SSHServer {
	t.Helper()
	s := newSSHServer(t)
	Write(t, s.path("config"), s.config(s))

	r := Begin(t, exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", s.path("config")))
	Await(t, patience, func() bool {
		select {
		case <-r.Ended():
			t.Fatalf("sshd ended: %s", r.err.String())
		default:
		}
		c, err := net.DialTimeout("tcp", s.addr(), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, "sshd answers at %s", s.addr())
	return s
}

func (s *SSHServer) path(name string) string { return filepath.Join(s.dir, name) }
func (s *SSHServer) addr() string            { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// args are sshfs's to serve dir at mountpoint through s.
func (s *SSHServer) args(dir, mountpoint string) []string {
	return []string{
		"-p", fmt.Sprint(s.port), "-o", "IdentityFile=" + s.path("user"),
		"-o", "UserKnownHostsFile=" + s.path("known"), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
		"root@127.0.0.1:" + dir, mountpoint,
	}
}

// Sshfs serves dir at mountpoint with sshfs through s.
func (s *SSHServer) Sshfs(t T, dir, mountpoint string, options ...string) *Daemon {
	t.Helper()
	return serve(t, mountpoint, exec.Command("sshfs", append(append([]string{"-f"}, options...), s.args(dir, mountpoint)...)...))
}

// SshfsCommand is BindfsCommand for sshfs through s.
func (s *SSHServer) SshfsCommand(dir string) string {
	return "sshfs " + strings.Join(s.args(dir, "%m"), " ")
}

func freePort(t T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
