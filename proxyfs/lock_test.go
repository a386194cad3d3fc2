package proxyfs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { helpers["locker"] = lockerHelper }

// lockerHelper opens a file and does what it is told on standard input, a line
// each, answering with a line: "lock KIND TYPE START LEN", "wait KIND …" (the
// same, but waiting), "test KIND …" (who is in the way), "close". KIND is
// posix, ofd or flock.
func lockerHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var verb, kind, typ string
		var start, length int64
		fmt.Sscan(in.Text(), &verb, &kind, &typ, &start, &length)
		if verb == "close" {
			fmt.Println(answer(f.Close()))
			continue
		}
		fmt.Println(doLock(int(f.Fd()), verb, kind, typ, start, length))
	}
	return in.Err()
}

var lockTypes = map[string]int16{"read": unix.F_RDLCK, "write": unix.F_WRLCK, "un": unix.F_UNLCK}

func doLock(fd int, verb, kind, typ string, start, length int64) string {
	if kind == "flock" {
		how := map[string]int{"read": unix.LOCK_SH, "write": unix.LOCK_EX, "un": unix.LOCK_UN}[typ]
		if verb == "lock" {
			how |= unix.LOCK_NB
		}
		return answer(unix.Flock(fd, how))
	}
	cmd := map[string]int{
		"lock posix": unix.F_SETLK, "wait posix": unix.F_SETLKW, "test posix": unix.F_GETLK,
		"lock ofd": unix.F_OFD_SETLK, "wait ofd": unix.F_OFD_SETLKW, "test ofd": unix.F_OFD_GETLK,
	}[verb+" "+kind]
	fl := unix.Flock_t{Type: lockTypes[typ], Start: start, Len: length}
	err := unix.FcntlFlock(uintptr(fd), cmd, &fl)
	if err == nil && verb == "test" {
		return fmt.Sprintf("type %d start %d len %d pid %d", fl.Type, fl.Start, fl.Len, fl.Pid)
	}
	return answer(err)
}

func answer(err error) string {
	if err == nil {
		return "ok"
	}
	if errno, ok := err.(syscall.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// locker is a lockerHelper that runs.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	pid string
}

func newLocker(t *testing.T, path ...string) *locker {
	t.Helper()
	l := &locker{t: t, cmd: helperCommand(0, 0, nil, "locker", filepath.Join(path...))}
	var err error
	l.in, err = l.cmd.StdinPipe()
	check(t, err)
	out, err := l.cmd.StdoutPipe()
	check(t, err)
	l.cmd.Stderr = os.Stderr
	check(t, l.cmd.Start())
	l.out = bufio.NewScanner(out)
	t.Cleanup(l.end)
	l.pid = l.read()
	return l
}

// end makes the helper exit, even if it waits for a lock.
func (l *locker) end() {
	if l.cmd != nil {
		l.in.Close()
		l.cmd.Process.Kill()
		l.cmd.Wait()
		l.cmd = nil
	}
}

func (l *locker) send(what string) { fmt.Fprintln(l.in, what) }

func (l *locker) read() string {
	l.t.Helper()
	if !l.out.Scan() {
		l.t.Fatalf("the locker ended: %v", l.out.Err())
	}
	return l.out.Text()
}

func (l *locker) want(want, what string) {
	l.t.Helper()
	l.send(what)
	if got := l.read(); got != want {
		l.t.Fatalf("%s: %s, want %s", what, got, want)
	}
}

// inLockCall tells whether a thread of the locker is in fcntl(2) or flock(2).
func (l *locker) inLockCall() bool {
	calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", l.cmd.Process.Pid))
	for _, path := range calls {
		call, _ := os.ReadFile(path)
		if nr, _, _ := strings.Cut(string(call), " "); nr == fmt.Sprint(unix.SYS_FCNTL) || nr == fmt.Sprint(unix.SYS_FLOCK) {
			return true
		}
	}
	return false
}

// Locks of two processes, through the mount and on the directory, conflict
// just as on one file system.
func TestLocksConflict(t *testing.T) {
	m := mount(t, Options{})
	for _, side := range []string{"mount", "directory"} {
		other := map[string]string{"mount": m.mnt, "directory": m.dir}[side]
		for _, kinds := range [][2]string{{"posix", "posix"}, {"ofd", "ofd"}, {"posix", "ofd"}, {"ofd", "posix"}, {"flock", "flock"}} {
			t.Run(side+" "+kinds[0]+" "+kinds[1], func(t *testing.T) {
				name := strings.Join(kinds[:], "-") + side
				writeFile(t, "content", m.dir, name)
				a, b := newLocker(t, m.mnt, name), newLocker(t, other, name)
				ka, kb := kinds[0], kinds[1]
				a.want("ok", "lock "+ka+" write 10 10")
				b.want("EAGAIN", "lock "+kb+" read 15 1")
				if ka != "flock" {
					b.want("ok", "lock "+kb+" write 20 5")
					a.want("EAGAIN", "lock "+ka+" write 24 1")
					b.want("ok", "lock "+kb+" un 0 0")
				}
				a.want("ok", "lock "+ka+" read 10 10")
				b.want("ok", "lock "+kb+" read 15 1")
				a.want("EAGAIN", "lock "+ka+" write 10 10")
				b.want("ok", "lock "+kb+" un 15 1")

				// Waiting ends when the lock is freed; by close, too.
				a.want("ok", "lock "+ka+" write 0 0")
				b.send("wait " + kb + " write 3 3")
				a.want("ok", "close")
				if got := b.read(); got != "ok" {
					t.Errorf("waiting: %s", got)
				}
			})
		}
	}
}

func TestLocksEndWithTheirProcess(t *testing.T) {
	m := mount(t, Options{})
	for _, kind := range []string{"posix", "ofd", "flock"} {
		writeFile(t, "", m.dir, kind)
		a, b := newLocker(t, m.mnt, kind), newLocker(t, m.mnt, kind)
		a.want("ok", "lock "+kind+" write 0 0")
		b.send("wait " + kind + " write 0 0")
		a.end()
		if got := b.read(); got != "ok" {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

func TestGetLockTellsWho(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "", m.dir, "f")
	a, b, below := newLocker(t, m.mnt, "f"), newLocker(t, m.mnt, "f"), newLocker(t, m.dir, "f")
	a.want("ok", "lock posix write 10 5")
	b.want("type 1 start 10 len 5 pid "+a.pid, "test posix read 0 0")
	a.want(fmt.Sprintf("type %d start 0 len 0 pid 0", unix.F_UNLCK), "test posix write 0 0")
	below.want("ok", "lock posix read 100 0")
	b.want("type 0 start 100 len 0 pid "+below.pid, "test posix write 50 60")
	b.want(fmt.Sprintf("type %d start 50 len 60 pid 0", unix.F_UNLCK), "test posix read 50 60")
}

// Who waits for a lock can be killed, keeps nobody else from being served, and
// does not get the lock afterwards.
func TestWaitingForALockCanBeCancelled(t *testing.T) {
	m := mount(t, Options{})
	writeFile(t, "", m.dir, "f")
	for _, kind := range []string{"posix", "ofd", "flock"} {
		a := newLocker(t, m.mnt, "f")
		a.want("ok", "lock "+kind+" write 0 0")
		var waiting []*locker
		for i := 0; i < 20; i++ {
			w := newLocker(t, m.mnt, "f")
			w.send("wait " + kind + " write 0 0")
			waiting = append(waiting, w)
		}
		for _, w := range waiting {
			eventually(t, "it waits for the lock", w.inLockCall)
		}
		writeFile(t, "others are served", m.mnt, "g")
		for _, w := range waiting {
			w.end()
		}
		a.want("ok", "lock "+kind+" un 0 0")
		b := newLocker(t, m.mnt, "f")
		b.want("ok", "wait "+kind+" write 0 0")
		b.end()
		a.end()
	}
}

func TestSetRange(t *testing.T) {
	const r, w, u = unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK
	for _, c := range []struct {
		have []lockRange
		set  lockRange
		want []lockRange
	}{
		{nil, lockRange{0, 9, w}, []lockRange{{0, 9, w}}},
		{nil, lockRange{0, maxEnd, u}, nil},
		{[]lockRange{{0, 9, w}}, lockRange{3, 5, u}, []lockRange{{0, 2, w}, {6, 9, w}}},
		{[]lockRange{{0, 9, w}}, lockRange{3, 5, r}, []lockRange{{0, 2, w}, {6, 9, w}, {3, 5, r}}},
		{[]lockRange{{0, 4, r}, {8, 9, r}}, lockRange{5, 7, r}, []lockRange{{0, 9, r}}},
		{[]lockRange{{0, maxEnd, w}}, lockRange{100, maxEnd, u}, []lockRange{{0, 99, w}}},
		{[]lockRange{{10, maxEnd, w}}, lockRange{0, 9, w}, []lockRange{{0, maxEnd, w}}},
		{[]lockRange{{0, 9, r}, {20, 29, w}}, lockRange{5, 25, u}, []lockRange{{0, 4, r}, {26, 29, w}}},
	} {
		if got := setRange(c.have, c.set); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v and %v: %v, want %v", c.have, c.set, got, c.want)
		}
	}
}

// FuzzSetRange compares setRange with one lock type per byte.
func FuzzSetRange(f *testing.F) {
	f.Add([]byte{0, 5, 1, 3, 9, 0, 2, 4, 2})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var model [32]int16
		for i := range model {
			model[i] = unix.F_UNLCK
		}
		var ranges []lockRange
		for ; len(steps) >= 3; steps = steps[3:] {
			a, b := uint64(steps[0]%32), uint64(steps[1]%32)
			set := lockRange{min(a, b), max(a, b), int16(steps[2] % 3)}
			ranges = setRange(ranges, set)
			for i := set.start; i <= set.end; i++ {
				model[i] = set.typ
			}
		}
		var got [32]int16
		for i := range got {
			got[i] = unix.F_UNLCK
		}
		for i, r := range ranges {
			for j, o := range ranges {
				if i != j && (r.overlaps(o) || r.typ == o.typ && r.end+1 == o.start) {
					t.Errorf("%v and %v are not apart", r, o)
				}
			}
			for k := r.start; k <= r.end; k++ {
				got[k] = r.typ
			}
		}
		if got != model {
			t.Errorf("%v, want %v", got, model)
		}
	})
}
