package proxyfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testUID = 12345
	testGID = 23456
)

func init() {
	helpers["populate"] = populateHelper
	helpers["denied"] = deniedHelper
	helpers["append"] = appendHelper
	helpers["listxattr"] = listxattrHelper
}

// populateHelper makes one file of each kind, under umask 027.
func populateHelper(args []string) error {
	unix.Umask(0o027)
	in := func(name string) string { return filepath.Join(args[0], name) }
	f, err := os.OpenFile(in("file"), os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("mine"); err != nil {
		return err
	}
	tmp, err := unix.Open(args[0], unix.O_TMPFILE|unix.O_WRONLY, 0o666)
	if err != nil {
		return fmt.Errorf("O_TMPFILE: %w", err)
	}
	return errors.Join(f.Close(),
		os.Mkdir(in("dir"), 0o777),
		os.Symlink("target", in("link")),
		unix.Mkfifo(in("fifo"), 0o666),
		unix.Linkat(unix.AT_FDCWD, procPath(tmp), unix.AT_FDCWD, in("tmp"), unix.AT_SYMLINK_FOLLOW),
		os.Rename(in("file"), in("file2")), os.Rename(in("file2"), in("file")))
}

var populated = map[string]uint32{
	"file": unix.S_IFREG | 0o640, "dir": unix.S_IFDIR | 0o750, "link": unix.S_IFLNK | 0o777,
	"fifo": unix.S_IFIFO | 0o640, "tmp": unix.S_IFREG | 0o640,
}

func TestWhatIsCreatedBelongsToTheCaller(t *testing.T) {
	m := mount(t, Options{})
	for _, c := range []struct {
		dir      string
		mode     uint32
		acl      []byte
		uid, gid uint32
		wantGID  uint32
	}{
		{"root", 0o777, nil, 0, 0, 0},
		{"user", 0o777, nil, testUID, testGID, testGID},
		{"rootgroup", 0o777, nil, testUID, 0, 0},
		{"setgid", 0o2777, nil, testUID, testGID, 4321},
	} {
		dir := filepath.Join(m.dir, c.dir)
		check(t, os.Mkdir(dir, 0o755))
		check(t, os.Chown(dir, 0, 4321))
		check(t, unix.Chmod(dir, c.mode))
		runHelperAs(t, c.uid, c.gid, "populate", filepath.Join(m.mnt, c.dir))
		for name, mode := range populated {
			if name == "dir" {
				mode |= c.mode & unix.S_ISGID
			}
			st := stat(t, dir, name)
			if st.Uid != c.uid || st.Gid != c.wantGID || st.Mode != mode {
				t.Errorf("%s/%s: %d:%d mode %o, want %d:%d %o", c.dir, name, st.Uid, st.Gid, st.Mode, c.uid, c.wantGID, mode)
			}
		}
	}
}

// A directory's default ACL takes the umask's place.
func TestDefaultACLOverridesUmask(t *testing.T) {
	m := mount(t, Options{})
	check(t, unix.Chmod(m.dir, 0o777))
	acl := aclOf([3]uint16{aclUserObj, 7, 0}, [3]uint16{aclGroupObj, 7, 0}, [3]uint16{aclOther, 7, 0})
	check(t, unix.Setxattr(m.mnt, "system.posix_acl_default", acl, 0))
	runHelperAs(t, testUID, testGID, "populate", m.mnt)
	for name, want := range map[string]uint32{"file": unix.S_IFREG | 0o666, "dir": unix.S_IFDIR | 0o777, "fifo": unix.S_IFIFO | 0o666} {
		if st := stat(t, m.dir, name); st.Mode != want || st.Uid != testUID {
			t.Errorf("%s: mode %o, owner %d, want %o of %d", name, st.Mode, st.Uid, want, testUID)
		}
	}
}

// The tags of include/uapi/linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclOf is an ACL as its extended attribute; entries are tag, permissions, id.
func aclOf(entries ...[3]uint16) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		id := []byte{0xff, 0xff, 0xff, 0xff}
		if e[0] == aclUser {
			id = []byte{byte(e[2]), byte(e[2] >> 8), 0, 0}
		}
		b = append(append(b, byte(e[0]), 0, byte(e[1]), 0), id...)
	}
	return b
}

// deniedHelper succeeds if it may not read its first argument, but the others.
func deniedHelper(args []string) error {
	if _, err := os.ReadFile(args[0]); !os.IsPermission(err) {
		return fmt.Errorf("read %s: %v, want to be denied", args[0], err)
	}
	for _, path := range args[1:] {
		if _, err := os.ReadFile(path); err != nil {
			return err
		}
	}
	return nil
}

func TestPermissionsAreTheCallers(t *testing.T) {
	m := mount(t, Options{})
	for name, mode := range map[string]os.FileMode{"secret": 0o600, "open": 0o644, "byacl": 0o600} {
		writeFile(t, name, m.dir, name)
		check(t, os.Chmod(filepath.Join(m.dir, name), mode))
	}
	acl := aclOf([3]uint16{aclUserObj, 6, 0}, [3]uint16{aclUser, 4, testUID},
		[3]uint16{aclGroupObj, 0, 0}, [3]uint16{aclMask, 4, 0}, [3]uint16{aclOther, 0, 0})
	check(t, unix.Setxattr(filepath.Join(m.mnt, "byacl"), "system.posix_acl_access", acl, 0))
	in := func(name string) string { return filepath.Join(m.mnt, name) }
	runHelperAs(t, testUID, testGID, "denied", in("secret"), in("open"), in("byacl"))
	runHelperAs(t, testUID+1, testGID, "denied", in("byacl"), in("open"))
}

// appendHelper changes a file in the way its second argument says.
func appendHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	switch args[1] {
	case "write":
		_, err = f.WriteString("x")
	case "truncate":
		err = os.Truncate(args[0], 1)
	case "ftruncate":
		err = f.Truncate(1)
	case "fallocate":
		err = unix.Fallocate(int(f.Fd()), 0, 0, 100)
	case "open":
		var g *os.File
		if g, err = os.OpenFile(args[0], os.O_WRONLY|os.O_TRUNC, 0); err == nil {
			err = g.Close()
		}
	}
	return err
}

// Set-id bits and file capabilities fall as they do on the directory itself.
func TestPrivilegesFallWithAWrite(t *testing.T) {
	m := mount(t, Options{})
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // VFS_CAP_REVISION_2, CAP_NET_BIND_SERVICE
	for _, how := range []string{"write", "truncate", "ftruncate", "fallocate", "open"} {
		for _, uid := range []uint32{0, testUID} {
			var got [2]string
			for i, side := range []string{m.dir, m.mnt} {
				path := filepath.Join(side, fmt.Sprint(how, uid, i))
				writeFile(t, "content", path)
				check(t, unix.Setxattr(path, "security.capability", caps, 0))
				check(t, unix.Chmod(path, 0o6777))
				runHelperAs(t, uid, uid, "append", path, how)
				_, err := unix.Getxattr(path, "security.capability", make([]byte, 100))
				got[i] = fmt.Sprintf("mode %o, capability: %v", stat(t, path).Mode, err)
			}
			if got[0] != got[1] {
				t.Errorf("%s as %d: on the mount %s, on the directory %s", how, uid, got[1], got[0])
			}
		}
	}
}

func listxattrHelper(args []string) error {
	buf := make([]byte, 1000)
	n, err := unix.Listxattr(args[0], buf)
	if err != nil {
		return err
	}
	names := strings.Split(string(buf[:n]), "\x00")
	slices.Sort(names)
	fmt.Printf("%q", names)
	return nil
}

func TestXattrs(t *testing.T) {
	m := mount(t, Options{})
	path := filepath.Join(m.mnt, "f")
	writeFile(t, "", path)
	check(t, unix.Setxattr(path, "user.a", []byte("1"), unix.XATTR_CREATE))
	wantErrno(t, "XATTR_CREATE", unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
	wantErrno(t, "XATTR_REPLACE", unix.Setxattr(path, "user.b", nil, unix.XATTR_REPLACE), unix.ENODATA)
	check(t, unix.Setxattr(path, "trusted.t", []byte("2"), 0))
	_, err := unix.Getxattr(path, "trusted.t", make([]byte, 0))
	check(t, err)
	check(t, unix.Setxattr(path, "user.b", make([]byte, 2000), 0))
	_, err = unix.Getxattr(path, "user.b", make([]byte, 10))
	wantErrno(t, "too small a buffer", err, unix.ERANGE)

	for uid, want := range map[uint32]string{0: `["" "trusted.t" "user.a" "user.b"]`, testUID: `["" "user.a" "user.b"]`} {
		out, err := helperCommand(uid, uid, nil, "listxattr", path).Output()
		check(t, err)
		if string(out) != want {
			t.Errorf("user %d sees %s, want %s", uid, out, want)
		}
	}
	check(t, unix.Removexattr(path, "user.a"))
	_, err = unix.Getxattr(path, "user.a", nil)
	wantErrno(t, "removed", err, unix.ENODATA)

	// On a symbolic link, not on what it points to.
	link := filepath.Join(m.mnt, "link")
	check(t, os.Symlink("f", link))
	check(t, unix.Lsetxattr(link, "trusted.l", []byte("3"), 0))
	if _, err := unix.Lgetxattr(filepath.Join(m.dir, "link"), "trusted.l", make([]byte, 9)); err != nil {
		t.Errorf("the link has no attribute: %v", err)
	}
	_, err = unix.Getxattr(path, "trusted.l", nil)
	wantErrno(t, "what the link points to", err, unix.ENODATA)
}

func TestWithoutTrusted(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		"user.a\x00":                         "user.a\x00",
		"trusted.a\x00":                      "",
		"trusted.a\x00user.b\x00trusted.c":   "user.b\x00",
		"user.trusted.\x00security.x\x00":    "user.trusted.\x00security.x\x00",
		"trustedx\x00trusted.\x00user.z\x00": "trustedx\x00user.z\x00",
	} {
		if got := string(withoutTrusted([]byte(in))); got != want {
			t.Errorf("withoutTrusted(%q) = %q, want %q", in, got, want)
		}
	}
}
